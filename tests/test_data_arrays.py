"""The digits exactly; CIFAR from archives, folders and zips, whole and damaged."""

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdcs.data.archives import LAYOUTS
from mdcs.data.arrays import Cifar, Digits
from mdcs.data.splits import Splits
from mdcs.errors import UserError

REAL_ZIP = Path(__file__).parents[1] / ".." / "shared" / "data" / "cifar100.zip"
TEN = ["bee", "bottle", "bus", "chair", "crab", "dolphin", "fox", "lamp", "rabbit", "tractor"]


# ---- digits


@pytest.fixture(scope="module")
def digits() -> Splits:
    return Digits().splits()


def test_digits_are_as_designed(digits: Splits) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    assert digits.counts_before_validation == (110, 71, 46, 29, 19, 12, 8, 5, 3, 2)
    assert digits.classes.counts.tolist() == list(digits.counts_before_validation) and len(digits.train.labels) == 305
    assert digits.train.images.shape == (305, 3, 8, 8) and digits.train.images.dtype == torch.uint8
    assert torch.bincount(digits.test.labels).tolist() == [60] * 10 and digits.val is None
    assert not set(digits.test.positions.tolist()) & set(digits.train.positions.tolist())
    assert [int(group.sum()) for group in digits.classes.groups.values()] == [3, 4, 3]
    for part in (digits.train, digits.test):
        assert (part.labels.numpy() == data.target[part.positions]).all()
        for channel in range(3):
            assert (part.images[:, channel].numpy() == np.round(data.images[part.positions] * 255 / 16)).all()
    assert digits.train.paths[0] == f"digits/{int(digits.train.positions[0]):04}"


def test_digits_test_split_is_drawn_by_seed_zero(digits: Splits) -> None:
    from sklearn.datasets import load_digits

    target = load_digits().target
    random = np.random.RandomState(0)
    expected = []
    for label in range(10):
        positions = np.flatnonzero(target == label)
        random.shuffle(positions)
        expected += positions[:60].tolist()
    assert sorted(expected) == digits.test.positions.tolist()


def test_subset_seed_redraws_training_only(digits: Splits) -> None:
    other = Digits(subset_seed=1).splits()
    assert torch.equal(other.test.positions, digits.test.positions) and torch.equal(other.train.labels, digits.train.labels)
    assert not torch.equal(other.train.positions, digits.train.positions)


def test_digits_normalisation_is_that_of_the_default_training_pictures(digits: Splits) -> None:
    pixels = digits.train.images.double() / 255
    assert pixels.mean().item() == pytest.approx(Digits.mean[0], abs=1e-4)
    assert pixels.std(unbiased=False).item() == pytest.approx(Digits.std[0], abs=1e-4)


def test_classes_count_what_is_trained_on(digits: Splits) -> None:
    carved = Digits(val_fraction=0.1).splits()
    assert carved.val is not None and carved.counts_before_validation == digits.counts_before_validation
    assert carved.classes.counts.tolist() == torch.bincount(carved.train.labels).tolist() == [99, 64, 41, 26, 17, 11, 7, 4, 2, 1]
    both = [*carved.train.positions.tolist(), *carved.val.positions.tolist()]
    assert sorted(both) == sorted(digits.train.positions.tolist()) and len(set(both)) == 305


def test_digits_keep_one_picture_at_any_imbalance() -> None:
    steep = Digits(imbalance_factor=1000, val_fraction=0.2).splits()
    assert steep.counts_before_validation[0] == 110 and steep.counts_before_validation[-1] == 1
    assert any("have a single training picture" in note for note in steep.notes)


# ---- official archives: small ones of the same structure


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes strings and bytes as Python 2 did: both as byte strings."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_byte_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + len(raw).to_bytes(4, "little") + raw)
        self.memoize(value)

    dispatch[str] = save_byte_string
    dispatch[bytes] = save_byte_string


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def fake_files(num_classes: int, per_class: int = 20, python2: bool = True) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The files of one archive with `per_class` training and 2 test pictures a class, and the images and labels of the training files."""
    layout, random = LAYOUTS[num_classes], np.random.RandomState(7)
    dump = python2_pickle if python2 else (lambda value: pickle.dumps(value, protocol=4))
    total = num_classes * per_class
    images = random.randint(0, 256, (total, 3, 32, 32)).astype(np.uint8)
    labels = random.permutation(np.arange(total) % num_classes)
    files = {layout.meta: dump({layout.names: [f"class {number}" for number in range(num_classes)]})}
    for number, rows in enumerate(np.array_split(np.arange(total), len(layout.train))):
        data = images[rows].reshape(len(rows), 3072)
        batch = {"batch_label": "training", layout.labels: labels[rows].tolist(), "data": np.asfortranarray(data) if number == 1 else data}
        files[layout.train[number]] = dump(batch)
    test = random.randint(0, 256, (2 * num_classes, 3072)).astype(np.uint8)
    files[layout.test] = dump({layout.labels: (np.arange(2 * num_classes) % num_classes).tolist(), "data": test})
    return files, images, labels


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in sorted(files.items(), reverse=True):  # the official order is not that of the batches either
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("python2", [True, False])
@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("form", ["directory with archive", "archive", "directory with folder", "folder"])
def test_official_files_in_every_form(tmp_path: Path, num_classes: int, form: str, python2: bool) -> None:
    files, images, labels = fake_files(num_classes, python2=python2)
    layout = LAYOUTS[num_classes]
    if "archive" in form:
        root = write_tar(tmp_path / "Größe=1, 图片" / layout.archive, layout.folder, files)
    else:
        root = write_folder(tmp_path / "Größe=1, 图片" / layout.folder, files)
    source = Cifar(str(root.parent if form.startswith("directory") else root), num_classes, imbalance_factor=4)  # type: ignore[arg-type]
    splits = source.splits()
    assert splits.notes == () and splits.classes.names[:2] == ("class 0", "class 1")
    assert splits.counts_before_validation[0] == 20 and splits.counts_before_validation[-1] == 5
    assert torch.equal(splits.train.images, torch.from_numpy(images[splits.train.positions]))
    assert (splits.train.labels.numpy() == labels[splits.train.positions]).all()
    assert len(splits.test.labels) == 2 * num_classes and splits.test.paths[3] == f"{layout.test}/00003"


def test_chosen_classes_of_an_archive_keep_its_positions(tmp_path: Path) -> None:
    files, images, labels = fake_files(100)
    root = write_folder(tmp_path / "cifar-100-python", files)
    splits = Cifar(str(root), 100, imbalance_factor=20, classes=["class 7", "class 3"]).splits()
    assert splits.counts_before_validation == (20, 1) and splits.classes.names == ("class 7", "class 3")
    assert labels[splits.train.positions].tolist() == [7] * 20 + [3]
    assert torch.equal(splits.train.images, torch.from_numpy(images[splits.train.positions]))
    assert splits.test.labels.tolist() == [1, 0, 1, 0]


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    files, _, _ = fake_files(10)
    marker = tmp_path / "it ran"
    files["data_batch_3"] = pickle.dumps({"data": Malicious(marker)}, protocol=protocol)
    root = write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(UserError, match=r"data_batch_3 is refused: it asks for \w+\.mkdir"):
        Cifar(str(root), 10).splits()
    assert not marker.exists()
    pickle.loads(files["data_batch_3"])
    assert marker.exists()  # so the file was really one that runs


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: content for key, content in files.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is incomplete: data_batch_2 missing"),
        (b"\x80\x02}garbage", r"data_batch_2 is damaged"),
        (pickle.dumps([1, 2]), r"expected a dictionary"),
        (pickle.dumps({"data": 3, "labels": [1]}), r"expected data, \(N, 3072\) bytes"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, protocol=4), r"as many labels"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [1]}, protocol=4), r"expected data"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, protocol=4), r"whole numbers from 0 to 9"),
    ],
)
def test_damaged_official_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    files = without(fake_files(10)[0], "data_batch_2")
    if content is not None:
        files["data_batch_2"] = content
    root = write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(UserError, match=message) as caught:
        Cifar(str(root), 10).splits()
    assert "\n" not in str(caught.value)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "cifar-10-python.tar.gz"
    broken.write_bytes(b"\x1f\x8bnot really")
    with pytest.raises(UserError, match="is no tar archive, or damaged"):
        Cifar(str(tmp_path), 10).splits()
    other = write_tar(tmp_path / "other.tar.gz", "x", {"readme": b"hello"})
    with pytest.raises(UserError, match="holds neither CIFAR-10 nor CIFAR-100"):
        Cifar(str(other), 10).splits()


def test_the_other_cifar_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "cifar-100-python", fake_files(100, per_class=1)[0])
    with pytest.raises(UserError, match=r"has 100 classes, but data\.num_classes=10"):
        Cifar(str(root), 10).splits()


def test_missing_dataset_says_what_to_do(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz, cifar-10-batches-py/ .*data\.download=true.*data\.root="):
            Cifar(str(root), 10).splits()


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10, utils

    made = write_tar(tmp_path / "made" / "archive.tar.gz", "cifar-10-batches-py", fake_files(10)[0])
    calls = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        calls.append((url, md5))
        shutil.copy(made, Path(root) / filename)

    monkeypatch.setattr(utils, "download_url", fetch)
    root = tmp_path / "new" / "data"
    for _ in range(2):  # the second finds what the first fetched
        assert len(Cifar(str(root), 10, imbalance_factor=2, download=True).splits().test.labels) == 20
    assert calls == [(CIFAR10.url, CIFAR10.tgz_md5)]
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]

    def fail(url: str, root: str, filename: str, md5: str) -> None:
        (Path(root) / filename).write_bytes(b"half")
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(utils, "download_url", fail)
    with pytest.raises(UserError, match=r"cannot be fetched into .*fetch it by hand"):
        Cifar(str(tmp_path / "other"), 10, download=True).splits()
    assert not list((tmp_path / "other").iterdir())


# ---- folders and zips of pictures


def png(colour: tuple[int, int, int] | int, size: tuple[int, int] = (5, 5)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def fake_pictures(num_classes: int = 3, per_class: int = 8) -> dict[str, bytes]:
    """Pictures of one colour, (class, number, 0) in the training split and (class, number, 1) in the test split."""
    names = ["a b=c", "Ähre", "图片", *(f"z{number:02}" for number in range(97))][:num_classes]
    train = {f"train/{name}/{n}.png": png((label, n, 0)) for label, name in enumerate(names) for n in range(per_class)}
    return train | {f"test/{name}/{n}.PNG": png((label, n, 1)) for label, name in enumerate(names) for n in range(2)}


def write_pictures(root: Path, files: dict[str, bytes], top: str = "") -> Path:
    """As a zip where `root` ends so, else as a folder."""
    if root.suffix == ".zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name, content in files.items():
                archive.writestr(top + name, content)
        return root
    for name, content in files.items():
        path = root / (top + name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(content)
    return root


FORMS = pytest.mark.parametrize("form", ["bilder 图 = 1", "bilder 图 = 1.zip"])


@FORMS
@pytest.mark.parametrize("top", ["", "photos, all/"])
def test_pictures_in_class_folders(tmp_path: Path, form: str, top: str) -> None:
    junk = {"train/图片/.DS_Store": b"x", "train/图片/notes.txt": b"x", "train/readme.txt": b"x"}
    root = write_pictures(tmp_path / form, fake_pictures() | junk, top)
    order = ["图片", "a b=c"]
    splits = Cifar(str(root), 10, imbalance_factor=4, classes=order).splits()
    assert splits.counts_before_validation == (8, 2) and splits.classes.names == tuple(order)
    assert splits.train.images.shape == (10, 3, 5, 5)
    for part, flag in ((splits.train, 0), (splits.test, 1)):
        for image, label, path in zip(part.images, part.labels, part.paths, strict=True):
            in_class = int(Path(path).stem)
            name = order[int(label)]
            assert image[:, 0, 0].tolist() == [{"图片": 2, "a b=c": 0}[name], in_class, flag]
            assert path == f"{top}{'test' if flag else 'train'}/{name}/{in_class}.{'PNG' if flag else 'png'}"
    everything = sorted(f"{top}{name}" for name in fake_pictures() if name.startswith("train"))
    assert [everything[position] for position in splits.train.positions] == list(splits.train.paths)
    assert any("not the official one" in note for note in splits.notes)
    assert any("1 file of other kinds than pictures" in note and "notes.txt" in note for note in splits.notes)


def test_folder_and_zip_agree(tmp_path: Path) -> None:
    files = fake_pictures(10)
    folder, archive = (Cifar(str(write_pictures(tmp_path / name, files)), 10, imbalance_factor=8).splits() for name in ("a", "a.zip"))
    assert torch.equal(folder.train.images, archive.train.images) and folder.train.paths == archive.train.paths
    assert torch.equal(folder.test.images, archive.test.images)


def test_uneven_folder_gives_what_it_has(tmp_path: Path) -> None:
    files = {name: content for name, content in fake_pictures(10).items() if not name.startswith(("train/a b=c/1", "train/a b=c/2"))}
    splits = Cifar(str(write_pictures(tmp_path, files)), 10, imbalance_factor=1).splits()
    assert splits.counts_before_validation == (6, *[7] * 9)  # (9 · 8 + 6) / 10 = 7.8
    assert any("fewer training pictures" in note and "a b=c" in note for note in splits.notes)


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    files = {f"{split}/{name}/0.png": png(9) for split in ("train", "test") for name in "ab"}
    splits = Cifar(str(write_pictures(tmp_path, files)), 10, imbalance_factor=1, classes=["a", "b"]).splits()
    assert splits.train.images.shape == (2, 3, 5, 5) and (splits.train.images == 9).all()


@FORMS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/Ähre/3.png": b"no picture"}, r"train/Ähre/3\.png cannot be read as a picture"),
        ({"train/Ähre/3.png": png((1, 1, 1))[:40]}, r"train/Ähre/3\.png cannot be read as a picture"),
        ({"train/Ähre/3.png": png(0, size=(7, 9))}, r"train/Ähre/3\.png has 7x9 pixels, train/a b=c/\d\.png has 5x5"),
        (dict.fromkeys(fake_pictures(), png(0, (5, 4))), r"png has 5x4 pixels; pictures must be square here, data=folder takes any"),
        ({f"test/{name}/{n}.PNG": png(0, (6, 6)) for name in ("a b=c", "Ähre", "图片") for n in (0, 1)}, r"pictures of different size"),
        ({"train/leer/": b""}, r"class 'leer' has no training picture"),
        ({"test/neu/0.png": png(0)}, r"class 'neu' has no training picture"),
    ],
)
def test_mistakes_in_class_folders(tmp_path: Path, form: str, change: dict[str, bytes], message: str) -> None:
    files = fake_pictures() | change
    names = sorted({name.split("/")[1] for name in files}, key=lambda name: (name != "a b=c", name))
    root = write_pictures(tmp_path / form, files)
    with pytest.raises(UserError, match=message) as caught:
        Cifar(str(root), 10, imbalance_factor=1, classes=names).splits()
    assert "\n" not in str(caught.value)


@FORMS
def test_folder_without_the_layout(tmp_path: Path, form: str) -> None:
    train_only = {name: content for name, content in fake_pictures().items() if name.startswith("train")}
    with pytest.raises(UserError, match="expected train/<class>/<picture> and test/<class>/<picture>"):
        Cifar(str(write_pictures(tmp_path / form, train_only)), 10).splits()
    two = {f"{top}/{name}": content for top in ("one", "two") for name, content in fake_pictures().items()}
    with pytest.raises(UserError, match="several do: one/, two/"):
        Cifar(str(write_pictures(tmp_path / f"two {form}", two)), 10).splits()


def test_bad_zip_and_bad_arguments(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK no")
    with pytest.raises(UserError, match="cannot be read as a zip of pictures"):
        Cifar(str(tmp_path / "bad.zip"), 10).splits()
    root = str(write_pictures(tmp_path / "good.zip", fake_pictures()))
    for arguments, message in (
        ({"classes": ["a b=c", "zebra"]}, r"data\.classes: no class 'zebra' among the 3"),
        ({"classes": ["图片", "图片"]}, r"each once"),
        ({"classes": []}, r"one or more class names"),
        ({}, r"has 3 classes, but data\.num_classes=10"),
    ):
        with pytest.raises(UserError, match=message):
            Cifar(root, 10, **arguments).splits()  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data\.num_classes=20: expected 10 or 100"):
        Cifar(root, 20).splits()  # type: ignore[arg-type]


# ---- the real pictures, where they are


@pytest.mark.skipif(not REAL_ZIP.exists(), reason="the CIFAR-100 zip is not beside the repository")
def test_real_cifar100() -> None:
    splits = Cifar(str(REAL_ZIP), 100).splits()
    assert len(splits.train.labels) == 10_847 and splits.test.images.shape == (10_000, 3, 32, 32)
    assert [int(group.sum()) for group in splits.classes.groups.values()] == [35, 35, 30]
    assert torch.bincount(splits.test.labels).tolist() == [100] * 100
    mean = (splits.test.images.double() / 255).mean((0, 2, 3))
    assert mean.tolist() == pytest.approx([0.5088, 0.4874, 0.4419], abs=1e-3)  # channels are in their places


@pytest.mark.skipif(not REAL_ZIP.exists(), reason="the CIFAR-100 zip is not beside the repository")
def test_ten_real_classes() -> None:
    splits = Cifar(str(REAL_ZIP), 10, classes=TEN).splits()
    assert splits.counts_before_validation == (500, 299, 179, 107, 64, 38, 23, 13, 8, 5)
    assert splits.classes.names == tuple(TEN) and len(splits.test.labels) == 1000
    assert splits.train.paths[0].startswith("train/bee/") and splits.train.paths[-1].startswith("train/tractor/")
