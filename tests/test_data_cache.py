"""The cache of shrunk pictures: equal pixels, built once, resumed, shared, and refused in one line."""

import multiprocessing
import os
import pickle
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mdcs.data import cache as module
from mdcs.data.cache import MappedPictures, cached
from mdcs.data.crops import Crop, shrunk
from mdcs.data.decode import BadPicture, Decoded
from mdcs.data.files import Files
from mdcs.data.paths import Paths
from mdcs.data.splits import Pictures, Splits
from mdcs.data.store import open_store
from mdcs.errors import UserError
from mdcs.types import Classes

CROP = Crop(32, 40)
SIZES = [(70, 90), (50, 45), (20, 30), (41, 40), (300, 60), (1, 1), (40, 40), (64, 200)]  # height, width


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height))
        coarse.save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 3)


def splits_of(root: Path, train: list[int], test: list[int]) -> Splits:
    store = open_store(root)
    picture = Decoded(store, Paths(store.names()))

    def split(rows: list[int]) -> Pictures:
        positions = np.array(rows, dtype=np.int64)
        labels = torch.arange(len(rows)) % 2
        return Pictures(Files(picture, positions, CROP), labels, torch.from_numpy(positions), picture.paths)

    classes = Classes.of(torch.arange(len(train)) % 2, ("a", "b"))
    return Splits(split(train), None, split(test), classes, (1, 1), ("a note",))


TRAIN, TEST = [5, 0, 3, 7, 1], [2, 6, 4]


def squares(splits: Splits) -> tuple[Tensor, Tensor]:
    train, test = splits.train.images, splits.test.images if splits.test is not None else None
    assert isinstance(train, Files) and isinstance(test, Files)
    return train.plain(torch.arange(5)), test.plain(torch.arange(3))


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_evaluation_sees_the_same_pixels(root: Path, tmp_path: Path) -> None:
    plain = splits_of(root, TRAIN, TEST)
    fast = cached(plain, tmp_path / "cache")
    for expected, got in zip(squares(plain), squares(fast), strict=True):
        assert torch.equal(expected, got)
    assert fast.notes[0] == "a note" and "8, short side up to 40 pixels" in fast.notes[1] and "built in" in fast.notes[1]
    picture = fast.train.images.picture  # type: ignore[union-attr]
    assert isinstance(picture, MappedPictures) and len(picture) == 8
    original = plain.train.images.picture  # type: ignore[union-attr]
    for split_plain, split_fast in ((plain.train, fast.train), (plain.test, fast.test)):
        assert split_plain is not None and split_fast is not None
        files = split_fast.images
        assert isinstance(files, Files) and files.crop == CROP
        for position, row in zip(split_plain.positions.tolist(), files.positions.tolist(), strict=True):
            assert np.array_equal(picture(row), shrunk(original(position), 40)) and not picture(row).flags.writeable
    draw = torch.arange(5)
    assert fast.train.images.random(draw, draw, 0, 0, 2).shape == (2, 5, 3, 32, 32)  # type: ignore[union-attr]


def test_it_is_built_once_and_for_the_same_pictures(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    first = cached(splits_of(root, TRAIN, TEST), folder)
    written = {name: (folder / name).stat().st_mtime_ns for name in files_below(folder)}

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(module, "decode", refuse)
    other = cached(splits_of(root, [*reversed(TEST), 0, 1], [5, 7, 3]), folder)  # the same pictures in other splits
    assert {name: (folder / name).stat().st_mtime_ns for name in files_below(folder)} == written
    assert ", built in" not in other.notes[1] and first.notes[1].startswith(other.notes[1])
    assert torch.equal(squares(other)[1][0], squares(first)[0][0])
    monkeypatch.undo()
    monkeypatch.setattr(module, "SHARD", 3)
    Image.new("RGB", (77, 66), "red").save(root / "0.jpg")
    cached(splits_of(root, TRAIN, TEST), folder)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2  # a changed file means another cache


def test_other_pictures_of_the_same_names_and_sizes_have_their_own(root: Path, tmp_path: Path) -> None:
    """As those of two BMP or PPM sets have."""
    seen = []
    for colour in ("red", "blue"):
        for name in root.iterdir():
            name.unlink()
        for number, (height, width) in enumerate(SIZES):
            Image.new("RGB", (width, height), colour).save(root / f"{number}.bmp")
        seen.append(squares(cached(splits_of(root, TRAIN, TEST), tmp_path / "cache"))[0])
    assert not torch.equal(*seen)


def test_an_interrupted_build_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, original = tmp_path / "cache", module.decode
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    decoded: list[str] = []

    def interrupted(content: bytes, name: str) -> np.ndarray:
        decoded.append(name)
        if len(decoded) == 5:
            raise KeyboardInterrupt
        return original(content, name)

    monkeypatch.setattr(module, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(splits_of(root, TRAIN, TEST), folder)
    assert all(".part/" in name or name == ".lock" for name in files_below(folder))
    fast = cached(splits_of(root, TRAIN, TEST), folder)
    assert len(decoded) == 5 + 5  # the first file of three pictures was kept
    assert not any(".part" in name for name in files_below(folder))
    for expected, got in zip(squares(splits_of(root, TRAIN, TEST)), squares(fast), strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_build_that_fills_the_disk_goes_on_when_there_is_room(
    cores: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the disk: of three files of pixels the second is too large for it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    folder, before = tmp_path / "cache", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_500, before[1]))
    try:
        with pytest.raises(UserError, match=r"^data\.cache=.* cannot be written \(.*finished parts stay in .*\.part, and the same command"):
            cached(splits_of(root, TRAIN, TEST), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (part,) = folder.glob("*")
    left = {path.name for path in part.glob("*")}
    assert part.name.endswith(".part") and {"00000.npy", "00000.pixels"} <= left and not any(name.startswith("00001") for name in left)
    fast = cached(splits_of(root, TRAIN, TEST), folder)
    assert not any(".part" in name for name in files_below(folder))
    for expected, got in zip(squares(splits_of(root, TRAIN, TEST)), squares(fast), strict=True):
        assert torch.equal(expected, got)


def test_workers_and_threads_build_the_same(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for name, cores in (("one", {0}), ("three", {0, 1, 2})):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        cached(splits_of(root, TRAIN, TEST), tmp_path / name)
        contents.append({file: (tmp_path / name / file).read_bytes() for file in files_below(tmp_path / name)})
    assert contents[0] == contents[1] and len(contents[0]) == 2 * 3 + 2


def _use(root: Path, folder: Path, answers: Any) -> None:
    module.SHARD = 3
    torch.set_num_threads(1)
    answers.put([square.numpy() for square in squares(cached(splits_of(root, TRAIN, TEST), folder))])


def test_processes_that_start_together_share_one(root: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_use, args=(root, tmp_path / "cache", answers)) for _ in range(3)]
    for process in processes:
        process.start()
    got = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    for expected, *others in zip(squares(splits_of(root, TRAIN, TEST)), *got, strict=True):
        assert all(np.array_equal(expected.numpy(), other) for other in others)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_a_waiting_process_takes_what_the_other_built(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, built = tmp_path / "cache", []
    original = module._build
    monkeypatch.setattr(module, "_build", lambda *arguments: (time.sleep(0.3), built.append(1), original(*arguments)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    threads = [threading.Thread(target=cached, args=(splits_of(root, TRAIN, TEST), folder)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_maps_are_opened_anew_by_whoever_unpickles_them(root: Path, tmp_path: Path) -> None:
    fast = cached(splits_of(root, TRAIN, TEST), tmp_path / "cache")
    squares(fast)
    content = pickle.dumps(fast.train.images)
    assert len(content) < 5_000
    assert torch.equal(pickle.loads(content).plain(torch.arange(5)), squares(fast)[0])


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_mistakes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plain = tmp_path / "cache", splits_of(root, TRAIN, TEST)
    assert cached(plain, None) is plain
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: Disk(10**6, 10**6 - 5_000, 5_000))
        with pytest.raises(UserError, match=r"^data\.cache=.*cache: about 0\.1 MiB are needed, 0\.0 MiB are free; choose another folder"):
            cached(plain, folder)
    assert not folder.exists()
    (root / "3.png").write_bytes((root / "3.png").read_bytes()[:60])
    with pytest.raises(BadPicture, match=r"^3\.png cannot be read as a picture[^\n]*$"):
        cached(plain, folder)
    assert not folder.exists()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=r"^data\.cache=.*file cannot be written \("):
        cached(splits_of(root, [0, 1, 2, 4, 5], [6, 7]), file)


def test_damage_is_named(root: Path, tmp_path: Path) -> None:
    cached(splits_of(root, TRAIN, TEST), tmp_path / "cache")
    pixels = next((tmp_path / "cache").glob("*/00001.pixels"))
    pixels.write_bytes(pixels.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00001\.pixels is damaged: expected .* bytes; remove .*, and it will be built again$"):
        cached(splits_of(root, TRAIN, TEST), tmp_path / "cache")


def test_pictures_in_memory_need_none(root: Path, tmp_path: Path) -> None:
    plain = splits_of(root, TRAIN, TEST)
    part = plain.train._replace(images=torch.zeros(5, 3, 8, 8, dtype=torch.uint8))
    assert "no effect" in cached(plain._replace(train=part, test=part), tmp_path / "cache").notes[-1]
    assert not (tmp_path / "cache").exists()
