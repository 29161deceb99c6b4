"""Squares cut out of pictures, against torchvision on Pillow pictures."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest
from torchvision import transforms
from torchvision.transforms import functional

from mdcs.data.crops import LONGEST, TRIES, Crop
from mdcs.errors import UserError

SIZES = [(375, 500), (500, 375), (256, 256), (224, 300), (31, 47), (1, 1), (2, 3), (40, 1200), (641, 57), (257, 1000)]  # height, width


def picture(height: int, width: int) -> np.ndarray:
    """Noise of several scales, so that resizing has something to do."""
    random = np.random.default_rng(height * 10_000 + width)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    fine = random.integers(-30, 30, (height, width, 3))
    return (np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("size", "resize"), [(224, None), (64, 64), (33, 40), (96, None)])
def test_plain_equals_torchvision(size: int, resize: int | None) -> None:
    crop = Crop(size, resize)
    published = transforms.Compose([transforms.Resize(crop.short_side), transforms.CenterCrop(size)])
    for height, width in SIZES:
        pixels = picture(height, width)
        square = crop.plain(pixels)
        assert square.shape == (3, size, size) and square.dtype == np.uint8 and square.flags.c_contiguous
        expected = np.asarray(published(Image.fromarray(pixels))).transpose(2, 0, 1)
        assert np.array_equal(square, expected), (height, width)


def test_published_evaluation_is_the_default() -> None:
    assert Crop() == Crop(224, None, (0.08, 1.0), (3 / 4, 4 / 3)) and Crop().short_side == 256 and Crop(64).short_side == 73


@pytest.mark.parametrize("turned", [False, True])
def test_an_extremely_long_picture_shows_its_middle(turned: bool) -> None:
    """1 x 100,000 pixels would be 256 x 25,600,000 before the central crop."""
    values = np.zeros((1, 100_001, 3), dtype=np.uint8)
    values[:, 50_000] = 200
    square = Crop().plain(values.swapaxes(0, 1) if turned else values).max(axis=(0, 2 if turned else 1))
    assert square.max() == 200 and abs(int(square.argmax()) - 112) <= 1
    short = 10
    limit = picture(short, short * LONGEST)
    published = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    assert np.array_equal(Crop().plain(limit), np.asarray(published(Image.fromarray(limit))).transpose(2, 0, 1))


def torchvision_draws(height: int, width: int, crop: Crop, seed: int) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """The box that RandomResizedCrop takes under a seed, and its draws as numbers in [0, 1) in the order that Crop wants them."""
    torch.manual_seed(seed)
    top, left, h, w = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), list(crop.scale), list(crop.ratio))
    torch.manual_seed(seed)
    log_ratio = torch.log(torch.tensor(crop.ratio))
    uniform = np.zeros((TRIES, 4))
    for row in uniform:
        area = torch.empty(1).uniform_(*crop.scale).item()
        shape = torch.empty(1).uniform_(log_ratio[0], log_ratio[1]).item()
        span = (crop.scale[1] - crop.scale[0], math.log(crop.ratio[1]) - math.log(crop.ratio[0]))
        row[:2] = (area - crop.scale[0]) / span[0], (shape - math.log(crop.ratio[0])) / span[1]
        target = height * width * area
        tried_w, tried_h = round(math.sqrt(target * math.exp(shape))), round(math.sqrt(target / math.exp(shape)))
        if 0 < tried_w <= width and 0 < tried_h <= height:
            row[2:] = (top + 0.5) / (height - h + 1), (left + 0.5) / (width - w + 1)
            break
    return (left, top, w, h), uniform.ravel()


@pytest.mark.parametrize("crop", [Crop(), Crop(scale=(0.9, 1.0)), Crop(scale=(0.2, 0.6), ratio=(0.5, 1.5))], ids=str)
def test_boxes_are_torchvisions_for_its_draws(crop: Crop) -> None:
    late = central = 0
    for seed in range(40):
        for height, width in SIZES:
            expected, uniform = torchvision_draws(height, width, crop, seed)
            assert crop.box(height, width, uniform) == expected, (seed, height, width)
            rows = uniform.reshape(TRIES, 4)
            late += bool(rows[1].any())
            central += bool(rows[-1].any() and not rows[-1, 2:].any())
    assert late > 10 and central > 10  # later tries and the central box were needed, too


def test_boxes_are_spread_as_stated() -> None:
    crop, side = Crop(scale=(0.1, 0.4), ratio=(0.8, 1.25)), 10_000
    uniform = np.random.default_rng(0).random((2000, crop.draws))
    left, top, width, height = np.array([crop.box(side, side, row) for row in uniform]).T
    assert (left >= 0).all() and (left + width <= side).all() and (top >= 0).all() and (top + height <= side).all()
    shares = (
        (width * height / side**2 - 0.1) / 0.3,
        np.log(width / height) / np.log(1.25) / 2 + 0.5,
        left / (side - width),
        top / (side - height),
    )
    for share in shares:
        assert kstest(share, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_random_square_is_pillows_resized_box(height: int, width: int) -> None:
    crop, pixels = Crop(), picture(height, width)
    pixels.flags.writeable = False  # as in a memory map
    for row in np.random.default_rng(height).random((4, crop.draws)):
        left, top, w, h = crop.box(height, width, row)
        expected = functional.resized_crop(Image.fromarray(pixels), top, left, h, w, [224, 224])
        square = crop.random(pixels, row)
        difference = square.astype(int) - np.asarray(expected).transpose(2, 0, 1)
        assert square.shape == (3, 224, 224) and square.dtype == np.uint8 and square.flags.c_contiguous
        # weights of 16 bits: most often 1 value in 500 differs, but a quarter where a box is about as large as the square
        assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.3 and abs(difference.mean()) < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"^data\.image_size=0"),
        ({"resize": 200}, r"^data\.image_size=224: no square .* whose short side is 200$"),
        ({"scale": (0.5, 0.2)}, r"^data\.crop_scale=\[0\.5, 0\.2\]: expected the smallest and the largest, above 0, the second at most 1$"),
        ({"scale": (0.1, 1.5)}, r"^data\.crop_scale"),
        ({"scale": (0.0, 1.0)}, r"^data\.crop_scale"),
        ({"ratio": (-1.0, 1.0)}, r"^data\.crop_ratio=\[-1\.0, 1\.0\]: expected the smallest and the largest, above 0$"),
        ({"ratio": (1.0, math.inf)}, r"^data\.crop_ratio"),
    ],
)
def test_mistakes(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Crop(**settings)
