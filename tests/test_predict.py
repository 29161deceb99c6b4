"""`mdcs predict`: the table says what the run predicts, for any kind of input; unreadable pictures; mistakes. `Run.predict` of pictures."""

import csv
import io
import json
import shutil
import sys
import time
import zipfile
from multiprocessing import active_children
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mdcs
from conftest import full_disk
from mdcs import cli
from mdcs.build import Run
from mdcs.data.crops import Crop
from mdcs.errors import UserError
from mdcs.evaluation.combine import combine
from mdcs.predict import not_among, predict

NUM_PICTURES = 23
NAMES = ["0", 'a "b"', "c, d", "e\nf", "käfer", "图片", "g\rh", "7", "8", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    mdcs.run(["trainer.max_epochs=1", f"hydra.run.dir={folder}"])
    content = json.loads((folder / "classes.json").read_text())
    (folder / "classes.json").write_text(json.dumps(content | {"names": NAMES}))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return mdcs.load(folder)


@pytest.fixture(scope="module")
def images(run: Run) -> Tensor:
    """Pictures as the network sees them."""
    assert run.splits.test is not None
    return run.splits.test.plain(torch.arange(NUM_PICTURES))


@pytest.fixture
def photos(images: Tensor, tmp_path: Path) -> Path:
    """The same pictures as files, in folders whose order is that of the pictures."""
    for place, image in enumerate(images):
        file = tmp_path / "photos" / f"{place // 5}" / f"{place:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return tmp_path / "photos"


def read(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as table:
        return list(csv.DictReader(table))


def check(rows: list[dict[str, str]], logits_NKC: Tensor, top_k: int = 5) -> None:
    """Each row says what the logits say."""
    probabilities_NC = combine(logits_NKC).softmax(-1)
    best = probabilities_NC.topk(top_k)
    votes_NK = logits_NKC.argmax(-1)
    for n, row in enumerate(rows):
        assert [row[f"class_{rank}"] for rank in range(1, top_k + 1)] == [NAMES[label] for label in best.indices[n]]
        assert [float(row[f"probability_{rank}"]) for rank in range(1, top_k + 1)] == pytest.approx(best.values[n].tolist(), abs=1e-5)
        assert [row[f"expert_{k}"] for k in (1, 2, 3)] == [NAMES[vote] for vote in votes_NK[n]]
        assert float(row["agreement"]) == pytest.approx((votes_NK[n] == best.indices[n, 0]).double().mean().item(), abs=1e-5)
        assert row["error"] == ""
    assert len(rows) == len(logits_NKC)


def test_the_table_says_what_the_run_predicts(
    run: Run, folder: Path, photos: Path, images: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    summary = predict(str(folder), str(photos), str(out), batch_size=4)
    rows = read(out)
    best = [name for rank in range(1, 6) for name in (f"class_{rank}", f"probability_{rank}")]
    assert list(rows[0]) == ["file", *best, "expert_1", "expert_2", "expert_3", "agreement", "error"]
    assert [row["file"] for row in rows] == [f"{place // 5}/{place:03}.png" for place in range(NUM_PICTURES)]
    check(rows, run.predict(images))
    assert (summary.pictures, summary.unreadable) == (NUM_PICTURES, 0)
    assert "4 of 5 folders are called as no class of the run (1, 2, 3, 4)" in capsys.readouterr().out
    assert summary.answers[rows[0]["class_1"]] == [row["class_1"] for row in rows].count(rows[0]["class_1"])


def test_class_folders_that_the_run_does_not_know_are_named() -> None:
    assert not_among(["ant", "bee"], ["ant/1.png", "bee/1.png", "top.png"]) == []
    assert not_among(["ant", "bee"], ["monday/1.png", "tuesday/2.png"]) == []  # folders that are no classes
    assert not_among(["ant", "bee"], ["ant/1.png", "bee/deep/2.png"]) == []
    (line,) = not_among(["ant", "bee"], ["ant/day/1.png", "bee/2.png", "fly/day/3.png", "fly/night/4.png"])
    assert line.startswith("1 of 3 folders are called as no class of the run (fly)")
    (line,) = not_among(["ant", "bee"], ["x/ant/1.png", "x/fly/1.png", "x/bee/1.png"])
    assert line == "1 of 3 folders are called as no class of the run (fly): it answers with the classes it knows"


def test_workers_change_nothing(folder: Path, photos: Path, tmp_path: Path) -> None:
    for num_workers in (0, 2):
        predict(str(folder), str(photos), str(tmp_path / f"{num_workers}.csv"), batch_size=5, num_workers=num_workers)
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_archives_lists_and_single_pictures(run: Run, folder: Path, photos: Path, images: Tensor, tmp_path: Path) -> None:
    logits = run.predict(images)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in photos.rglob("*.png"):
            archive.write(file, file.relative_to(photos))
    chosen = [7, 3, 3, 22]  # a list keeps its order, and may name a picture twice
    (tmp_path / "some.txt").write_text("".join(f"photos/{place // 5}/{place:03}.png\n" for place in chosen))
    for source, expected in (("photos.zip", logits), ("some.txt", logits[chosen]), ("photos/1/006.png", logits[6:7])):
        out = tmp_path / "out.csv"
        predict(str(folder), str(tmp_path / source), str(out), top_k=2, overwrite=True)
        check(read(out), expected, top_k=2)


def test_parquet_says_the_same(folder: Path, photos: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    (photos / "broken.jpg").write_bytes(b"no picture")
    for suffix in ("csv", "parquet"):
        predict(str(folder), str(photos), str(tmp_path / f"out.{suffix}"))
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    rows = read(tmp_path / "out.csv")
    assert len(rows) == len(table) == NUM_PICTURES + 1
    for row, typed in zip(rows, table, strict=True):
        assert list(row) == list(typed)
        for name, value in typed.items():
            if isinstance(value, float):
                assert float(row[name]) == pytest.approx(value, rel=1e-5)
            else:
                assert row[name] == (value or "")


def test_unreadable_pictures_are_named_and_the_others_go_on(
    run: Run, folder: Path, photos: Path, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0; also where a whole batch is unreadable."""
    (photos / "0" / "001.png").write_bytes((photos / "0" / "001.png").read_bytes()[:60])
    for place in range(15, 20):
        (photos / "3" / f"{place:03}.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no picture")
    words = [f"run={folder}", f"input={photos}", f"output={tmp_path / 'out.csv'}", "batch_size=5"]
    monkeypatch.setattr(sys, "argv", ["mdcs", "predict", *words])
    cli.main()
    rows = read(tmp_path / "out.csv")
    bad = [1, *range(15, 20)]
    for place in bad:
        name = f"{place // 5}/{place:03}.png"
        assert rows[place]["error"].startswith(f"{name} cannot be read as a picture")
        assert {value for key, value in rows[place].items() if key not in ("file", "error")} == {""}
    good = [place for place in range(NUM_PICTURES) if place not in bad]
    check([rows[place] for place in good], run.predict(images)[good])
    out = capfd.readouterr().out
    assert f"{NUM_PICTURES} pictures" in out and "6 unreadable" in out and "0/001.png cannot be read" in out
    assert "not pictures by their names, so left out: 1 file (notes.txt)" in out


def test_a_name_that_the_terminal_cannot_show_ends_nothing(
    folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "\udcff ä.png").write_bytes(b"")
    (odd / "good.png").write_bytes((photos / "0" / "000.png").read_bytes())
    words = [f"run={folder}", f"input={odd}", f"output={tmp_path / 'out.csv'}"]
    for encoding, shown in (("ascii", rb"\udcff \xe4.png"), ("utf-8", "\\udcff ä.png".encode())):
        screen = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding=encoding))
        monkeypatch.setattr(sys, "argv", ["mdcs", "predict", *words, "overwrite=true"])
        cli.main()
        sys.stdout.flush()
        assert screen.getvalue().startswith(b"2 pictures in ") and shown + b" cannot be read" in screen.getvalue()


def test_nothing_that_can_be_read_is_a_mistake(folder: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 1 picture can be read, the first because: broken\.png cannot be read as a picture"):
        predict(str(folder), str(photos / "broken.png"), str(tmp_path / "out.csv"))
    assert not list(tmp_path.glob("out*"))


def test_a_lost_worker_is_told_in_one_line(folder: Path, photos: Path, tmp_path: Path) -> None:
    """As where the system runs out of memory."""
    (tmp_path / "many.txt").write_text("photos/0/000.png\n" * 5000)

    def kill() -> None:
        while not (workers := active_children()):
            time.sleep(0.001)
        workers[0].kill()

    killer = Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="a process that decodes pictures was ended"):
        predict(str(folder), str(tmp_path / "many.txt"), str(tmp_path / "out.csv"), batch_size=1, num_workers=1)
    killer.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.txt", "photos"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_full_disk_leaves_nothing(suffix: str, folder: Path, photos: Path, tmp_path: Path) -> None:
    with full_disk(), pytest.raises(UserError, match=rf"out.{suffix} cannot be written: .*[Ff]ile too large"):
        predict(str(folder), str(photos), str(tmp_path / f"out.{suffix}"))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_odd_names_of_files_survive(run: Run, folder: Path, photos: Path, images: Tensor, tmp_path: Path) -> None:
    names = sorted(['a,"b".png', "line\nbreak.png", "return\r.png", "图片 (1).png", "\udcff.png", "=1+1.png"])
    (tmp_path / "odd").mkdir()
    for name, file in zip(names, sorted(photos.rglob("*.png")), strict=False):
        shutil.copy(file, tmp_path / "odd" / name)
    predict(str(folder), str(tmp_path / "odd"), str(tmp_path / "out.csv"))
    rows = read(tmp_path / "out.csv")
    assert [row["file"] for row in rows] == names
    check(rows, run.predict(images[: len(names)]))
    predict(str(folder), str(tmp_path / "odd"), str(tmp_path / "out.parquet"))


def test_nothing_is_overwritten_or_left_behind(folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"out.csv exists already: choose another name, or set overwrite=true"):
        predict(str(folder), str(photos), str(out))

    def interrupt(self: Run, images: Tensor, batch_size: int) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "predict", interrupt)
        predict(str(folder), str(photos), str(out), overwrite=True)
    assert out.read_text() == "mine" and sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "photos"]
    predict(str(folder), str(photos), str(out), overwrite=True)
    assert len(read(out)) == NUM_PICTURES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": "nowhere"}, "nowhere: not a run folder"),
        ({"input": "nowhere"}, "nowhere: there is no such folder or file"),
        ({"input": "empty"}, "input=empty: there are no pictures in it$"),
        ({"input": "texts"}, "input=texts: there are no pictures in it, only files such as a.txt"),
        ({"output": "out.xlsx"}, r"output=out.xlsx: expected a file that ends in .csv or .parquet"),
        ({"output": "nowhere/out.csv"}, "output=nowhere/out.csv: there is no folder nowhere"),
        ({"output": "folder.csv"}, "output=folder.csv is a folder"),
        ({"top_k": 11}, "top_k=11: expected 1 to 10"),
        ({"top_k": 0}, "top_k=0: expected 1 to 10"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"device": "abacus"}, "device=abacus: there is no such device here"),
        ({"checkpoint": "best"}, "needs a validation split"),
        ({"checkpoint": "first"}, "checkpoint=first: expected last or best"),
    ],
    ids=lambda value: " ".join(f"{key}={word}" for key, word in value.items()) if isinstance(value, dict) else "",
)
def test_mistakes(
    settings: dict[str, object], message: str, folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "texts", "folder.csv"):
        Path(name).mkdir()
    Path("texts/a.txt").write_text("no picture")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        predict(**{"run": str(folder), "input": str(photos), "output": "out.csv", **settings})  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_without_checkpoint_and_few_classes(photos: Path, tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        for label in ("ant", "bee", "cat"):
            (tmp_path / "own" / split / label).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((32, 32, 3), 30 * i, np.uint8)).save(tmp_path / "own" / split / label / f"{i}.png")
    run = tmp_path / "run"
    data = ["data=cifar10", f"data.root={tmp_path / 'own'}", "data.classes=[ant,bee,cat]", "data.imbalance_factor=null"]
    mdcs.run([*data, "model=resnet8", "trainer.max_epochs=1", f"hydra.run.dir={run}"])
    shutil.rmtree(tmp_path / "own")
    predict(str(run), str(photos), str(tmp_path / "out.csv"))
    assert "class_3" in read(tmp_path / "out.csv")[0] and "class_4" not in read(tmp_path / "out.csv")[0]
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(UserError, match=r"last.ckpt: there is no such checkpoint"):
        predict(str(run), str(photos), str(tmp_path / "other.csv"))


def test_pictures_of_any_kind(run: Run, photos: Path, images: Tensor, tmp_path: Path) -> None:
    logits = run.predict(images)
    arrays = list(images.permute(0, 2, 3, 1).numpy())
    files = sorted(photos.rglob("*.png"))
    np.save(tmp_path / "images.npy", images.numpy())
    kinds = [
        images.numpy(),
        np.load(tmp_path / "images.npy", mmap_mode="r"),
        arrays,
        files,
        tuple(map(str, files)),
        (file for file in files),
        [Image.fromarray(array) for array in arrays],
    ]
    for kind in kinds:
        torch.testing.assert_close(run.predict(kind, batch_size=7), logits, rtol=0, atol=1e-4)
    for single in (str(files[3]), files[3], Image.open(files[3]), arrays[3]):
        torch.testing.assert_close(run.predict(single), logits[3:4], rtol=0, atol=1e-4)
    assert run.predict([]).shape == run.predict(images[:0]).shape == (0, 3, 10)


def test_pictures_of_any_size_are_seen_as_evaluation_would(run: Run, tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 91, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = run.predict(torch.from_numpy(Crop(8, 8).plain(photo))[None])
    for kind in (tmp_path / "photo.png", photo, Image.fromarray(photo)):
        torch.testing.assert_close(run.predict([kind]), expected)
    predict(str(run.folder), str(tmp_path / "photo.png"), str(tmp_path / "out.csv"))
    check(read(tmp_path / "out.csv"), expected)


def test_classify_names_the_most_probable(run: Run, photos: Path, images: Tensor) -> None:
    probabilities = combine(run.predict(images)).softmax(-1)
    answers = run.classify(sorted(photos.rglob("*.png")), top_k=2)
    for answer, row in zip(answers, probabilities, strict=True):
        labels = row.argsort(descending=True)[:2]
        assert [name for name, _ in answer] == [NAMES[label] for label in labels]
        assert [value for _, value in answer] == pytest.approx(row[labels].tolist(), abs=1e-5)
    assert sum(value for _, value in run.classify(images[:1], top_k=99)[0]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="top_k=0: expected at least 1"):
        run.classify(images[:1], top_k=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"must be uint8 \(N, 3, H, W\) or a list of pictures or paths, not torch.float32 \(2, 3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"not uint8 \(2, 8, 8, 3\)"),
        (["nowhere.png"], "nowhere.png cannot be read"),
        ([np.zeros((8, 8), np.uint8)], r"a picture must be a path, .* not uint8 \(8, 8\)"),
        ([3], "a picture must be a path, .* not int"),
        (None, "a picture must be a path, .* not NoneType"),
    ],
    ids=["float", "channels last", "no file", "grey", "number", "nothing"],
)
def test_what_is_no_picture(given: object, message: str, run: Run) -> None:
    with pytest.raises(UserError, match=message):
        run.predict(given)  # type: ignore[arg-type]
