"""Pictures of any kind and size become the squares that the run's evaluation sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdcs.data.arrays import Cifar
from mdcs.data.crops import Crop
from mdcs.data.folder import Folder
from mdcs.data.splits import DataSource
from mdcs.data.squares import batches, evaluation_crop, pixels
from mdcs.errors import UserError


@dataclass(frozen=True)
class Sized(DataSource):
    image_size: int | str = 8
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("image_size", "short_side"), [(8, 8), (32, 32), (64, 64), (65, 74), (128, 146), (224, 256)])
def test_the_short_side_is_that_of_evaluation(image_size: int, short_side: int) -> None:
    crop = evaluation_crop(Sized(image_size))
    assert (crop.size, crop.short_side) == (image_size, short_side)


@pytest.mark.parametrize("image_size", [32, 96])
def test_squares_are_those_of_the_test_split(image_size: int, tmp_path: Path) -> None:
    """What a run on a folder evaluates on, made by the folder itself."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for i, (height, width) in enumerate([(100, 141), (200, 130), (image_size, image_size)]):
                Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / split / name / f"{i}.png")
    source = Folder(str(tmp_path), image_size=image_size)
    test = source.splits().test
    assert test is not None and len(test.labels) == 6
    files = sorted((tmp_path / "test").rglob("*.png"))
    (squares_BCHW,) = batches(files, source, batch_size=6)
    assert squares_BCHW.equal(test.plain(torch.arange(6)))


def test_pictures_that_are_taken_as_stored_are_not_cropped(tmp_path: Path) -> None:
    """Above 64 pixels, where those of other sources lose their border."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(draw.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / split / name / "0.png")
    source = Cifar(str(tmp_path), num_classes=10, classes=["ant", "bee"], imbalance_factor=None, image_size=96)
    test = source.splits().test
    assert test is not None
    (squares_BCHW,) = batches(sorted((tmp_path / "test").rglob("*.png")), source, batch_size=2)
    assert squares_BCHW.equal(test.plain(torch.arange(2)))


def test_a_size_that_was_never_decided_is_told() -> None:
    with pytest.raises(UserError, match=r"data.image_size=auto: the run does not say how large its pictures are"):
        list(batches(["a.png"], Sized("auto"), 1))


def test_parts_are_as_large_as_asked() -> None:
    images = torch.arange(7 * 3 * 2 * 2).reshape(7, 3, 2, 2).to(torch.uint8)
    for kind in (images, images.numpy()):
        parts = list(batches(kind, Sized(), 3))
        assert [len(part) for part in parts] == [3, 3, 1] and torch.cat(parts).equal(images)
    assert list(batches([], Sized(), 3)) == []


def test_opened_pictures_are_read_as_their_files(tmp_path: Path) -> None:
    """Turned by EXIF, transparent, grey of 16 bits, palette, CMYK."""
    draw = np.random.default_rng(0)
    photo = Image.fromarray(draw.integers(0, 256, (9, 14, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(draw.integers(0, 256, (9, 14, 4), dtype=np.uint8)).save(tmp_path / "transparent.png")
    Image.fromarray(draw.integers(0, 65536, (9, 14), dtype=np.uint16)).save(tmp_path / "deep.png")
    photo.convert("P").save(tmp_path / "palette.gif")
    photo.convert("CMYK").save(tmp_path / "print.jpg")
    shapes = {}
    for file in tmp_path.iterdir():
        with Image.open(file) as picture:
            assert np.array_equal(pixels(picture), pixels(file)), file.name
        shapes[file.name] = pixels(file).shape
    assert shapes.pop("turned.jpg") == (14, 9, 3)
    assert set(shapes.values()) == {(9, 14, 3)}


def test_the_square_of_a_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    (square,) = batches(photo, Sized(), 1)
    assert np.array_equal(square[0].numpy(), Crop(8, 8).plain(photo))
