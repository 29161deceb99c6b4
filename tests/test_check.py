"""`mdcs check`: what it finds, that it finds nothing where nothing is off, its contact sheet and its exit codes."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mdcs.augment.policies import Identity
from mdcs.augment.views import Augment
from mdcs.check import Finding, check, name_of, of_counts
from mdcs.cli import main
from mdcs.config import compose, plain
from mdcs.contact_sheet import COLUMNS, LABELS, LINE, MARGIN, contact_sheet, example_rows, font_for
from mdcs.data.benchmarks import CIFAR, INATURALIST_MINI, PLACES_LT, published
from mdcs.data.splits import Pictures, Splits
from mdcs.errors import UserError
from mdcs.types import Classes


def checked(*words: str) -> dict[str, Finding]:
    """The findings, by what was checked; those that are off come first."""
    cfg = plain(compose("check", list(words)))
    return {finding.what: finding for finding in sorted(check(**cfg), key=lambda finding: finding.state == "off")}


def off(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is printed, in one line and without the table's lines, where something is off."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        checked(*words)
    assert exit_.value.code == 1
    return " ".join("".join(letter for letter in capsys.readouterr().out if letter not in "│┃━─┌┐└┘├┤┼").split())


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """The words for a tiny Places-LT that has nothing wrong with it."""
    root = tmp_path / "Places"
    random = np.random.RandomState(0)
    lists = {
        "train": [(f"data_256/a/scene {label}/{row}.jpg", label) for label in range(3) for row in range(4 - label)],
        "val": [(f"data_256/a/scene {label}/9.jpg", label) for label in range(3)],
        "test": [(f"val_256/{label}.jpg", label) for label in range(3)],
    }
    (root / "Places_LT").mkdir(parents=True)
    for split, pictures in lists.items():
        (root / f"Places_LT/Places_LT_{split}.txt").write_text("".join(f"{path} {label}\n" for path, label in pictures))
        for path, _ in pictures:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.randint(0, 256, (40, 50, 3)).astype(np.uint8)).save(root / path)
    sheet = tmp_path / "sheet.png"
    return [
        "data=places_lt",
        f"data.root={root}",
        "data.num_classes=3",
        "data.image_size=32",
        "data.num_workers=0",
        f"output={sheet}",
        "overwrite=true",
    ]


# ---------------------------------------------------------------------------------------------------------------- findings


def test_nothing_is_off(places: list[str], tmp_path: Path) -> None:
    found = checked(*places)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["files"].detail.startswith("all 15 are there")
    assert found["decoding"].detail.startswith("15 of 15 decoded")
    assert found["decoding"].detail.endswith("short sides of 40 to 40 pixels, 40 in the median")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (LABELS + 5 * (96 + MARGIN), LINE + MARGIN + 3 * (96 + MARGIN))


def test_files_that_are_missing_empty_damaged_or_beside_the_others(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "Places"
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    (root / "val_256/0.jpg").unlink()
    (root / "val_256/1.jpg").write_bytes(b"")
    damaged = root / "data_256/a/scene 0/0.jpg"
    damaged.write_bytes(damaged.read_bytes()[:400])
    (root / "val_256/other.txt").touch()
    (root / "val_256/Thumbs.db").touch()
    told = off(capsys, *places)
    assert "1 of 15 missing: val_256/0.jpg" in told and "1 of 15 empty: val_256/1.jpg" in told
    assert "1 of 13 cannot be: data_256/a/scene 0/0.jpg" in told and "1 other file in the same folders" in told
    assert told.endswith("something is off with this dataset: files, decoding")
    assert all(file.read_bytes() == content for file, content in before.items() if file.parent.name == "Places_LT" or "9.jpg" in file.name)
    assert "decoding off" not in off(capsys, *places, "sample=1") and "no picture was decoded" in off(capsys, *places, "sample=0")
    assert "1 of 13 cannot be" in off(capsys, *places, "sample=all")


def test_a_picture_in_two_splits(places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "Places/Places_LT/Places_LT_val.txt", "a") as file:
        file.write("val_256/0.jpg 0\n")
    told = off(capsys, *places)
    assert "1 picture listed in val and in test, the first being val_256/0.jpg" in told and told.endswith("dataset: splits")


def test_a_list_that_cannot_be_read(places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "Places/Places_LT/Places_LT_train.txt", "a") as file:
        file.write("val_256/0.jpg 3\n")
    told = off(capsys, *places).replace(" ", "")  # the table breaks long paths anywhere
    assert "Places_LT_train.txt,line10:class3ofval_256/0.jpg:expected0to2" in told


def test_no_picture_at_all(places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (tmp_path / "Places").rglob("*.jpg"):
        file.unlink()
    told = off(capsys, *places)
    assert "15 of 15 missing" in told and told.endswith("files, views") and not (tmp_path / "sheet.png").exists()


def test_a_class_with_one_picture_is_a_note(places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "Places/Places_LT/Places_LT_train.txt"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "scene 2/1" not in line))
    assert checked(*places)["classes"] == Finding("classes", "note", "1 class (scene 2) has a single picture to train on")
    assert capsys.readouterr().out.endswith("nothing is off; 1 note to read\n")


def test_own_pictures_in_a_folder(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    for name in ("one", "two"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for row in range(6):
            Image.fromarray(random.randint(0, 256, (70, 80, 3)).astype(np.uint8)).save(tmp_path / "own" / name / f"{row}.png")
    found = checked("data=folder", f"data.root={tmp_path / 'own'}", f"output={tmp_path / 'sheet.png'}")
    assert found["counts"].detail.startswith("10 train, 2 val; 2 classes of 5 to 5") and (tmp_path / "sheet.png").exists()
    assert not [finding for finding in found.values() if finding.state == "off"]


# ---------------------------------------------------------------------------------------------------------------- published counts


def of_sizes(counts: list[int], **others: int) -> Splits:
    """Splits of these sizes, without pictures."""

    def pictures(labels: torch.Tensor) -> Pictures:
        return Pictures(torch.empty(len(labels), 3, 1, 1, dtype=torch.uint8), labels, torch.arange(len(labels)), [])

    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    classes = Classes.of(labels, [str(label) for label in range(len(counts))])
    parts = {name: pictures(torch.zeros(count, dtype=torch.int64)) for name, count in others.items()}
    return Splits(pictures(labels), parts.get("val"), parts.get("test"), classes, tuple(counts), ())


def test_counts_are_compared_with_those_published() -> None:
    facts = PLACES_LT._replace(classes=3, pictures={"train": 150, "test": 6}, largest=101, smallest=19, groups=(1, 1, 1))
    assert of_counts(of_sizes([101, 30, 19], test=6), facts).detail.endswith("; as published")
    wrong = of_counts(of_sizes([100, 30, 19], val=1), facts)
    assert wrong.state == "off" and wrong.detail == (
        "not as published: 149 train pictures instead of 150; 0 test pictures instead of 6; 100 pictures in the largest class instead of "
        "101; 0 many-shot classes instead of 1; 2 medium-shot classes instead of 1"
    )
    assert of_counts(of_sizes([7], test=1), None).state == "off"
    assert of_counts(of_sizes([7, 5], test=1), None).state == "ok"


@cache
def node(*words: str) -> dict[str, Any]:
    return dict(plain(compose("check", list(words)))["data"])


@pytest.mark.parametrize(("num_classes", "factor"), CIFAR)
def test_cifar_counts_follow_from_the_formula(num_classes: int, factor: int) -> None:
    from mdcs.data.classes import long_tailed_counts

    counts = np.array(long_tailed_counts(50_000 / num_classes, num_classes, factor, "exp"))
    facts = published(node(f"data=cifar{num_classes}", f"data.imbalance_factor={factor}"))
    assert facts is not None and facts.pictures["train"] == counts.sum()
    assert (facts.largest, facts.smallest) == (counts.max(), counts.min())
    assert facts.groups == ((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum())


def test_what_is_published_of_which_settings() -> None:
    assert published(node("data=cifar10", "data.profile=step")) is None
    assert published(node("data=cifar100", "data.classes=[bee,bus]")) is None
    assert published(node("data=places_lt", "data.num_classes=5")) is None
    assert published(node("data=places_lt")) == PLACES_LT
    other = published(node("data=places_lt", "data.test_list=Places_LT_forward50.txt"))
    assert other == PLACES_LT._replace(pictures={"train": 62_500, "val": 7_300})
    own = published(node("data=inat18", "data.train_list=mine.txt"))
    assert own is not None and (own.pictures, own.groups) == ({"test": 24_426}, None)
    assert published(node("data=inat18", "data.train_list=a/iNaturalist18_train.txt")) == published(node("data=inat18"))
    assert published(node("data=inat21", "data.mini=true")) == INATURALIST_MINI
    for data, train in (("inat17", 579_184), ("inat18", 437_513), ("inat21", 2_686_843), ("imagenet_lt", 115_846), ("digits", 305)):
        facts = published(node(f"data={data}"))
        assert facts is not None and facts.pictures["train"] == train


# ---------------------------------------------------------------------------------------------------------------- contact sheet


def test_the_sheet_shows_the_pixels_that_are_trained_on() -> None:
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = Pictures(images, torch.tensor([0, 1, 1]), torch.arange(3), ["a", "b", "c"])
    classes = Classes.of(pictures.labels, ["one", "a name that is longer than the column which it stands in"])
    assert example_rows(pictures, classes) == [1, 0]
    augment = Augment(Identity(), Identity(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), num_pictures=2)
    sheet = np.asarray(contact_sheet(pictures, [1, 0], augment, classes, seed=0))
    for row, picture in enumerate((images[1], images[0])):
        for column in range(len(COLUMNS)):
            top, left = LINE + MARGIN + row * (96 + MARGIN), LABELS + column * (96 + MARGIN)
            assert (sheet[top : top + 96, left : left + 96] == picture.permute(1, 2, 0).numpy()).all()


# ---------------------------------------------------------------------------------------------------------------- command line


def test_class_names_are_drawn_in_a_font_that_has_their_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stix = font_for("a").with_name("STIXGeneral.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), str(stix), str(font_for("a"))])
    assert font_for("große Äpfel\n1 picture").name == "DejaVuSans.ttf"
    assert font_for("\N{APL FUNCTIONAL SYMBOL CIRCLE STILE}") == stix
    assert font_for("\N{LINEAR B SYLLABLE B008 A}").name == "DejaVuSans.ttf"  # none has it


def test_wrong_settings_are_no_finding(places: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.root=.*nowhere: there is no such file or folder; data/README.md says"):
        checked("data=imagenet_lt", f"data.root={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"^sample=-1: expected a number of pictures from 0, or all$"):
        checked(*places, "sample=-1")
    with pytest.raises(UserError, match=r"^output=.*expected a file that ends in .png$"):
        checked(*places, "output=sheet.jpg")
    for word, message in {
        "data.val_fraction=2": r"^data.val_fraction=2: expected a number from 0 up to",
        "data.classes=[nave]": r"^data.classes: no class 'nave' among the 3 of this dataset",
        "data.few_below=200": r"^few_below=200 is above many_above=100",
        "data.image_size=big": r"^data.image_size='big': expected a whole number",
    }.items():
        with pytest.raises(UserError, match=message):
            checked("data=folder", f"data.root={tmp_path}/Places/data_256/a", f"output={tmp_path / 'sheet.png'}", word)
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100", "imagenet_lt", "places_lt", "inat17", "inat18", "inat21", "folder"])
def test_a_dataset_is_called_as_it_is_chosen(data: str) -> None:
    assert name_of(node(f"data={data}")) == data


def test_from_the_command_line(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["mdcs", "check", *words])
        try:
            main()
        except SystemExit as exit_:
            return int(exit_.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    code, out, error = run("data=digits")
    assert (code, error) == (0, "") and f"contact sheet: {tmp_path / 'check_digits.png'}\n" in out
    (tmp_path / "check_digits.png").write_text("kept")
    assert f"contact sheet: {tmp_path / 'check_digits_2.png'}\n" in run("data=digits")[1]
    assert run("data=digits", "output=check_digits.png")[0] == 2 and (tmp_path / "check_digits.png").read_text() == "kept"
    assert run("data=digits", "overwrite=true")[0] == 0 and (tmp_path / "check_digits.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "Places/val_256/0.jpg").unlink()
    code, out, error = run(*places)
    assert code == 1 and out.endswith("something is off with this dataset: files\n") and not error
    code, out, error = run("data=digits", "smaple=1")
    assert code == 2 and not out and error.startswith("mdcs: smaple: there is no such setting")


def test_all_that_is_wrong_with_a_folder_is_found_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for row in range(4):
            Image.fromarray(np.full((16, 16, 3), 50 * row, np.uint8)).save(tmp_path / "own" / name / f"{row}.png")
    (tmp_path / "own" / "ant" / "text.png").write_bytes(b"text")
    (tmp_path / "own" / "bee" / "short.png").write_bytes((tmp_path / "own" / "bee" / "1.png").read_bytes()[:60])
    (tmp_path / "own" / "bee" / "copy.png").write_bytes((tmp_path / "own" / "bee" / "1.png").read_bytes())
    words = ["data=folder", f"data.root={tmp_path / 'own'}", f"output={tmp_path / 'sheet.png'}", "data.val_fraction=0.5"]
    told = off(capsys, *words)
    assert (tmp_path / "sheet.png").exists() and told.endswith("something is off with this dataset: decoding")
    assert "data.image_size=32" in told and "9 pictures read into memory" in told and "9 pictures decoded when read" in told
    reasons = "bee/short.png (image file is truncated), ant/text.png (it is no JPEG"
    assert "decoding off 2 of 11 pictures cannot be read, so left out: " in told and all(part in told for part in reasons.split(", "))
    assert "splits note " in told and "of val are in train too, byte for byte" in told
    assert not [finding for finding in checked(*words, "data.on_bad=skip", "overwrite=true").values() if finding.state == "off"]
