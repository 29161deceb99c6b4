"""From a decoded picture of any size to the square that the network sees."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mdcs.errors import UserError

TRIES = 10  # of a random box, before the central one is taken
LONGEST = 32  # sides in this ratio or less are resized whole; more would take gigabytes to show the same centre


@dataclass(frozen=True)
class Crop:
    """How pictures (H, W, 3) uint8 become squares (3, size, size) uint8, at random for training and always alike for evaluation.

    `resize`: length of the short side before the central crop, None = 256/224 of `size`. `scale`: share of the picture's area that a random
    box has; `ratio`: its width over its height. The defaults are those of ImageNet training (arXiv:1409.4842, section 6).
    """

    size: int = 224
    resize: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    draws: ClassVar[int] = 4 * TRIES  # area, shape, top, left of each try

    def __post_init__(self) -> None:
        if self.size < 1 or self.short_side < self.size:
            raise UserError(
                f"data.image_size={self.size}: no square of that side can be cut from pictures whose short side is {self.short_side}"
            )
        for key, (low, high), most in (("crop_scale", self.scale, 1.0), ("crop_ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= most or math.isinf(high):
                span = "above 0, the second at most 1" if most == 1 else "above 0"
                raise UserError(f"data.{key}=[{low}, {high}]: expected the smallest and the largest, {span}")

    @property
    def short_side(self) -> int:
        """Length of the short side before the central crop."""
        return round(self.size * 256 / 224) if self.resize is None else self.resize

    def plain(self, picture_HW3: np.ndarray) -> np.ndarray:
        """The short side is brought to `resize`, then the centre is cut out: torchvision's Resize and CenterCrop on a Pillow picture."""
        height, width = picture_HW3.shape[:2]
        if max(height, width) > LONGEST * min(height, width):
            picture_HW3 = _middle(picture_HW3, LONGEST * min(height, width))
        resized = _resized(picture_HW3, self.short_side)
        left, top = (round((side - self.size) / 2) for side in resized.size)
        return _planes(resized.crop((left, top, left + self.size, top + self.size)))

    def random(self, picture_HW3: np.ndarray, uniform_R: np.ndarray) -> np.ndarray:
        """A random box, brought to `size`: the first of ten random ones that lies within the picture, else the central one.

        Bilinear with antialiasing. Deviates from Pillow's filter, which the published code uses, in the precision of the weights, 16 bits
        instead of 22: a few values in a hundred differ, by one grey level and without bias. It takes a third of the time.
        """
        left, top, width, height = self.box(picture_HW3.shape[0], picture_HW3.shape[1], uniform_R)
        box_HW3 = torch.from_numpy(np.array(picture_HW3[top : top + height, left : left + width]))  # a copy: pictures may be read-only
        size = (self.size, self.size)
        square = F.interpolate(box_HW3.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)
        return square[0].contiguous().numpy()

    def box(self, height: int, width: int, uniform_R: np.ndarray) -> tuple[int, int, int, int]:
        """(left, top, width, height) of the random box, from `draws` uniform numbers in [0, 1)."""
        low, high = (math.log(ratio) for ratio in self.ratio)
        for area, shape, down, right in uniform_R.reshape(TRIES, 4):
            target = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(right * (width - w + 1)), int(down * (height - h + 1)), w, h
        w, h = width, height
        if width / height < self.ratio[0]:
            h = min(height, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = min(width, round(height * self.ratio[1]))
        return (width - w) // 2, (height - h) // 2, w, h


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the short side brought to `short_side`; the other is truncated, as in torchvision."""
    if width <= height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def shrunk(picture_HW3: np.ndarray, short_side: int) -> np.ndarray:
    """The picture with a short side of at most `short_side`: what `Crop.plain` resizes a larger one to."""
    return np.asarray(_resized(picture_HW3, short_side)) if min(picture_HW3.shape[:2]) > short_side else picture_HW3


def _resized(picture_HW3: np.ndarray, short_side: int) -> Image.Image:
    picture = Image.fromarray(picture_HW3)
    height, width = resized_shape(picture.height, picture.width, short_side)
    return picture if (width, height) == picture.size else picture.resize((width, height), Image.Resampling.BILINEAR)


def _planes(picture: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _middle(picture_HW3: np.ndarray, longest: int) -> np.ndarray:
    """The picture without the ends of its long side; one pixel more than `longest` where that keeps the middle where it is."""
    height, width = picture_HW3.shape[:2]
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return np.ascontiguousarray(picture_HW3[top : height - top, left : width - left])
