"""The published CIFAR transforms on Pillow pictures, one at a time: what the batched operations are compared with.

Written from the published semantics (spec 4.3), in the published order of calls of `random`, and itself checked against the vectors.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision import transforms

GOLDEN = Path(__file__).parent / "golden"
VECTORS = np.load(GOLDEN / "augment.npz")
META = json.loads((GOLDEN / "augment.json").read_text())
GREY = (128, 128, 128)

Picture = Image.Image


def golden(name: str) -> np.ndarray:
    """HWC uint8; a picture that is stored under another name is found there."""
    return VECTORS[META["alias"].get(name, name)]


def chw(picture: Picture | np.ndarray) -> Tensor:
    """HWC picture -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _rotate(picture: Picture, degrees: float) -> Picture:
    turned = picture.convert("RGBA").rotate(degrees)
    return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")


def _affine(picture: Picture, matrix: tuple[float, ...], resample: Image.Resampling = Image.Resampling.NEAREST) -> Picture:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=GREY)


# name -> (picture, magnitude with its sign) -> picture
PIL_OPS: dict[str, Callable[[Picture, float], Picture]] = {
    "shearX": lambda p, m: _affine(p, (1, m, 0, 0, 1, 0), Image.Resampling.BICUBIC),
    "shearY": lambda p, m: _affine(p, (1, 0, 0, m, 1, 0), Image.Resampling.BICUBIC),
    "translateX": lambda p, m: _affine(p, (1, 0, m * p.size[0], 0, 1, 0)),
    "translateY": lambda p, m: _affine(p, (1, 0, 0, 0, 1, m * p.size[1])),
    "rotate": _rotate,
    "color": lambda p, m: ImageEnhance.Color(p).enhance(1 + m),
    "sharpness": lambda p, m: ImageEnhance.Sharpness(p).enhance(1 + m),
    "brightness": lambda p, m: ImageEnhance.Brightness(p).enhance(1 + m),
    "contrast": lambda p, m: ImageEnhance.Contrast(p).enhance(1 + m),
    "posterize": lambda p, m: ImageOps.posterize(p, int(m)),
    "solarize": lambda p, m: ImageOps.solarize(p, m),
    "invert": lambda p, m: ImageOps.invert(p),
    "autocontrast": lambda p, m: ImageOps.autocontrast(p),
    "equalize": lambda p, m: ImageOps.equalize(p),
}
SIGNED = {"shearX", "shearY", "translateX", "translateY", "color", "sharpness", "brightness", "contrast"}


def autoaugment(picture: Picture) -> Picture:
    """One random sub-policy of the published table."""
    row = META["cifar10_policy"][random.randint(0, 24)]
    for i in ("1", "2"):
        if random.random() < row["p" + i]:
            sign = random.choice([-1, 1]) if row["op" + i] in SIGNED else 1
            picture = PIL_OPS[row["op" + i]](picture, sign * row["magnitude" + i])
    return picture


def cutout(image_3HW: Tensor, size: int = 16) -> Tensor:
    height, width = image_3HW.shape[1:]
    y, x = np.random.randint(height), np.random.randint(width)
    image_3HW = image_3HW.clone()
    image_3HW[:, max(0, y - size // 2) : y + size // 2, max(0, x - size // 2) : x + size // 2] = 0
    return image_3HW


_crop_flip = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
PIL_WEAK = transforms.Compose([*_crop_flip, transforms.RandomRotation(15), chw])
PIL_STRONG = transforms.Compose([*_crop_flip, autoaugment, chw, cutout])


@pytest.mark.parametrize("name", [f"{k:02d}/{sign}" for k in range(25) for sign in ("plus", "minus")])
def test_reference_gives_the_golden_sub_policy(name: str) -> None:
    row = META["cifar10_policy"][int(name[:2])]
    picture = Image.fromarray(VECTORS["image32"])
    for i in ("1", "2"):
        sign = -1 if name.endswith("minus") and row["op" + i] in SIGNED else 1
        picture = PIL_OPS[row["op" + i]](picture, sign * row["magnitude" + i])
    # Another Pillow than that of the vectors may round differently; a wrong operation differs by far more.
    difference = np.abs(np.array(picture).astype(int) - golden(f"cifar10policy/{name}"))
    assert difference.max() <= 3 and (difference > 0).mean() < 0.02


def test_reference_draws_as_published() -> None:
    random.seed(11)
    np.random.seed(11)
    pictures = [autoaugment(Image.fromarray(VECTORS["image32"])) for _ in range(6)]
    difference = np.abs(np.stack([np.array(p) for p in pictures]).astype(int) - VECTORS["cifar10policy/seed11_sequence"])
    assert difference.max() <= 3 and (difference > 0).mean() < 0.02


def test_reference_cutout_gives_the_golden_masks() -> None:
    np.random.seed(3)
    masks = [cutout(torch.ones(3, 32, 32))[0].numpy() for _ in range(8)]
    assert (np.stack(masks) == VECTORS["cutout/seed3_masks"]).all()
