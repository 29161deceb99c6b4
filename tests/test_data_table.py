"""Own pictures in a table: separators, encodings, splits, numbers, and one line for each mistake."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mdcs.data.splits import Splits
from mdcs.data.table import Table
from mdcs.errors import UserError
from test_data_folder import PLAIN, SPLIT, check_pixels, noted, picture, write

ROWS = [(name, name.split("/")[0]) for name in PLAIN]


def table(folder: Path, rows: list[tuple[object, ...]], header: str = "path,label", separator: str = ",", encoding: str = "utf-8") -> Path:
    file = folder / "Größe=1, 图.csv"
    lines = [separator.join(header.split(",")), *(separator.join(f'"{cell}"' for cell in row) for row in rows)]
    file.write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))
    return file


def splits_of(file: Path, **settings: object) -> Splits:
    return Table(file=str(file), image_size=32, **settings).splits()  # type: ignore[arg-type]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_encodings(tmp_path: Path, separator: str, encoding: str) -> None:
    write(tmp_path, PLAIN)
    splits = splits_of(table(tmp_path, ROWS, separator=separator, encoding=encoding))
    assert splits.classes.names == ("a b=c", "Ähre", "图片") and splits.counts_before_validation == (20, 10, 3)
    assert splits.test is None and splits.val is not None and torch.bincount(splits.val.labels).tolist() == [2, 1, 1]
    for image, label, path in zip(splits.train.images, splits.train.labels, splits.train.paths, strict=True):  # type: ignore[call-overload]
        assert image[:, 0, 0].tolist() == [int(label), int(Path(path).stem), 0]


def test_windows_1252(tmp_path: Path) -> None:
    write(tmp_path, {name: content for name, content in PLAIN.items() if not name.startswith("图")})
    rows = [row for row in ROWS if row[1] != "图片"]
    file = tmp_path / "x.csv"
    file.write_bytes("\n".join(["Path;Label", *(";".join(row) for row in rows)]).encode("cp1252"))
    assert splits_of(file).classes.names == ("a b=c", "Ähre")


@pytest.mark.parametrize("form", ["pictures", "pictures.zip", "pictures.tar"])
def test_paths_relative_to_the_root(tmp_path: Path, form: str) -> None:
    root = write(tmp_path / form, PLAIN)
    (tmp_path / "lists").mkdir()
    rows = [(f".\\{name}".replace("/", "\\"), label) for name, label in ROWS[:25]] + ROWS[25:]
    file = table(tmp_path / "lists", rows)
    assert sorted(splits_of(file, root=str(root)).train.paths)[0] in PLAIN
    with pytest.raises(UserError, match=r"its paths, such as a b=c/000\.png, are not in .*lists: set data\.root"):
        splits_of(file)


@pytest.mark.parametrize("form", ["pictures.zip", "pictures.tar"])
def test_paths_relative_to_the_folder_at_the_top_of_an_archive(tmp_path: Path, form: str) -> None:
    root = write(tmp_path / form, {f"my photos/{name}": content for name, content in PLAIN.items()})
    splits = splits_of(table(tmp_path, ROWS), root=str(root))
    check_pixels(splits)
    assert splits.counts_before_validation == (20, 10, 3) and splits.train.paths[0].startswith("my photos/")


def test_absolute_paths_and_the_folder_of_the_table(tmp_path: Path) -> None:
    root = write(tmp_path / "pictures", PLAIN)
    rows = [(str(root / name) if number % 2 else f"pictures/{name}", label) for number, (name, label) in enumerate(ROWS)]
    file = table(tmp_path, rows)
    (tmp_path / "elsewhere").mkdir()
    assert splits_of(file).counts_before_validation == splits_of(file, root=str(tmp_path / "elsewhere")).counts_before_validation


def test_splits_are_taken_from_the_table(tmp_path: Path) -> None:
    write(tmp_path, SPLIT)
    names = {"train": "Train", "val": "validation", "test": "TEST"}
    rows = [(path, path.split("/")[1], names[path.split("/")[0]]) for path in SPLIT]
    splits = splits_of(table(tmp_path, rows, "path,label,split"))
    assert {name: len(pictures.labels) for name, pictures in splits.named().items()} == {"train": 12, "val": 6, "test": 6}
    for name, pictures in splits.named().items():
        assert all(path.startswith(f"{name}/") for path in pictures.paths)
    without_val = [row for row in rows if row[2] != "validation"]
    carved = splits_of(table(tmp_path, without_val, "path,label,split"), val_fraction=0.25)
    assert carved.val is not None and all(path.startswith("train/") for path in carved.val.paths)


def test_numbers_beside_the_pictures(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    rows = [(path, label, number / 2, "" if number == 3 else -number, "me") for number, (path, label) in enumerate(ROWS)]
    splits = splits_of(table(tmp_path, rows, "path,label,Lat,lon,who"))
    assert noted(splits, "meta data: lat, lon") and noted(splits, "hold no numbers", "who")
    for pictures in splits.named().values():
        assert pictures.meta is not None and pictures.meta.dtype == torch.float32
        for path, numbers in zip(pictures.paths, pictures.meta.tolist(), strict=True):
            number = list(PLAIN).index(path)
            np.testing.assert_equal(numbers, [number / 2, np.nan if number == 3 else -number])
    assert splits_of(table(tmp_path, [(*row, "") for row in ROWS], "path,label,empty")).train.meta is None


def test_whole_numbers_as_labels(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    numbers = {"a b=c": 10, "Ähre": 9, "图片": 2}
    splits = splits_of(table(tmp_path, [(path, numbers[label]) for path, label in ROWS], "Filename,Class"))
    assert splits.classes.names == ("2", "9", "10") and splits.counts_before_validation == (3, 10, 20)


def test_repeated_rows(tmp_path: Path) -> None:
    write(tmp_path, PLAIN)
    splits = splits_of(table(tmp_path, [*ROWS, ROWS[0], (f"./{ROWS[1][0]}", ROWS[1][1])]))
    assert splits.counts_before_validation == (20, 10, 3) and noted(splits, "2 rows that repeat a picture")
    rows = [(path, label, "train") for path, label in ROWS] + [(*ROWS[0], "test")]
    assert noted(splits_of(table(tmp_path, rows, "path,label,split")), "1 picture of test is in train too, byte for byte")


def test_settings_of_a_folder_hold(tmp_path: Path) -> None:
    write(tmp_path, PLAIN | {"Ähre/000.png": b"bad", "large.png": picture((0, 0, 0), (300, 300))})
    file = table(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"1 of 33 pictures cannot be used: Ähre/000\.png"):
        splits_of(file)
    assert splits_of(file, on_bad="skip", classes=["Ähre", "图片"]).counts_before_validation == (9, 3)
    assert Table(file=str(file), on_bad="skip").survey()[:2] == (32, 33)


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "answers.parquet").write_bytes(b"PAR1\x15\x00\x00")
    with pytest.raises(UserError, match=r"answers\.parquet is no text: expected a table as text, such as CSV$"):
        splits_of(tmp_path / "answers.parquet")
    with pytest.raises(UserError, match=r"is a folder: expected a file$"):
        splits_of(tmp_path)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS, "picture,name", r"expected a table with the columns path and label.*it has the columns picture, name, 33 further rows"),
        ([(*row, "x") for row in ROWS], "path,label,label", r"2 columns are called label, expected one"),
        (
            [(ROWS[0][0], "a"), (ROWS[1][0], "b")],
            "path,label",
            r"every class has a single picture, so none can be set aside for validation",
        ),
        ([], "path,label", r"the columns path, label, 0 further rows"),
        ([*ROWS, ("x.png",)], "path,label", r"row 35 has 1 cells, the first row 2"),
        ([*ROWS, ("x.png", "")], "path,label", r"row 35 lacks its label"),
        ([*ROWS, ("", "x")], "path,label", r"row 35 lacks its path"),
        ([(*row, "dev") for row in ROWS], "path,label,split", r"row 2 has the split 'dev', expected train, val or test"),
        ([(*row, "val") for row in ROWS], "path,label,split", r"no row has the split train"),
        ([*ROWS, (ROWS[0][0], "Ähre")], "path,label", r"a b=c/000\.png has the labels 'a b=c' and 'Ähre'"),
        ([*ROWS, ("gone.png", "Ähre")], "path,label", r"1 of 34 pictures cannot be used: .*gone\.png cannot be read \(No such file"),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, rows: list[tuple[object, ...]], header: str, message: str) -> None:
    write(tmp_path, PLAIN)
    with pytest.raises(UserError, match=message) as caught:
        splits_of(table(tmp_path, rows, header))
    assert "\n" not in str(caught.value)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.file is missing"):
        Table().splits()
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read \(No such file"):
        splits_of(tmp_path / "nowhere.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(UserError, match="it has nothing"):
        splits_of(tmp_path / "empty.csv")
