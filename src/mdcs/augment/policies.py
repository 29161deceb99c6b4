"""What a view does to its pictures. Every policy is a pure function of the pictures and `draws` uniform numbers for each of them."""

import torch
from torch import Tensor

from mdcs.augment import ops
from mdcs.augment.autoaugment import AutoAugment
from mdcs.augment.randaugment import RandAugment
from mdcs.errors import UserError
from mdcs.types import Policy


class Identity(Policy):
    """The pictures as they are."""

    draws = 0

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        return images


class CifarWeak(Policy):
    """Crop after zero padding by `padding` pixels, horizontal flip (½), rotation by ±`degrees` (nearest, fill 0): MDCS's first view."""

    draws = 4  # crop down, crop right, flip, angle

    def __init__(self, padding: int = 4, degrees: float = 15.0) -> None:
        super().__init__()
        _check("padding", padding, 0, 255, "pixels")
        _check("degrees", degrees, 0, 180, "degrees")
        self.padding = padding
        self.degrees = degrees

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        images = _crop(images, uniform[:, :2], self.padding, mirrored_B=uniform[:, 2] < 0.5)
        return ops.rotate(images, _between(uniform[:, 3], self.degrees), fill=0)


class CifarStrong(Policy):
    """Crop and flip as `CifarWeak`, AutoAugment's CIFAR-10 policy, then a black square of side `cutout`: MDCS's second view."""

    draws = 3 + AutoAugment.draws + 2  # crop down, crop right, flip; AutoAugment; square's row and column

    def __init__(self, padding: int = 4, cutout: int = 16) -> None:
        super().__init__()
        _check("padding", padding, 0, 255, "pixels")
        _check("cutout", cutout, 0, 255, "pixels")
        self.padding = padding
        self.cutout = cutout
        self.autoaugment = AutoAugment()

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        images = _crop(images, uniform[:, :2], self.padding, mirrored_B=uniform[:, 2] < 0.5)
        images = self.autoaugment(images, uniform[:, 3:8])
        return _cutout(images, uniform[:, 8:10], self.cutout)


class ImageNetWeak(Policy):
    """Horizontal flip (½), then brightness, contrast and saturation, in random order, by factors uniform in 1 ± their setting.

    The random crop was the workers': `mdcs.data.crops`. Source: the first view of ImageNet-LT and Places-LT in the published code of MDCS.
    """

    draws = 5  # flip, three factors, order

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4) -> None:
        super().__init__()
        limits = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in limits.items():
            _check(name, value, 0, 1, "around 1")
        self.limits = tuple(limits.values())

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        mirrored_B = uniform[:, 0] < 0.5
        factors_B3 = torch.stack([1 + _between(uniform[:, 1 + k], limit) for k, limit in enumerate(self.limits)], dim=1)
        # The number of an order, 0..5: its first operation, and whether the other two are swapped.
        order_B = _whole(uniform[:, 4], 6)
        step_B = 1 + order_B % 2
        order_B3 = torch.stack([order_B // 2, order_B // 2 + step_B, order_B // 2 - step_B], dim=1) % 3
        rows = ops.rows_at_a_time(images)
        parts = zip(*(column.split(rows) for column in (images, mirrored_B, factors_B3, order_B3)), strict=True)
        return torch.cat([ops.jitter(_mirrored(part, mirrored), *how) for part, mirrored, *how in parts])


class ImageNetStrong(Policy):
    """`ImageNetWeak`, then RandAugment (rand-n2-m10-mstd0.5): the second view of ImageNet-LT and Places-LT as published."""

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        num_ops: int = 2,
        magnitude: float = 10.0,
        magnitude_std: float = 0.5,
        probability: float = 0.5,
    ) -> None:
        super().__init__()
        self.weak = ImageNetWeak(brightness, contrast, saturation)
        self.randaugment = RandAugment(num_ops, magnitude, magnitude_std, probability)
        self.draws = self.weak.draws + self.randaugment.draws

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        weak_BR, strong_BR = uniform.split([self.weak.draws, self.randaugment.draws], dim=1)
        return self.randaugment(self.weak(images, weak_BR), strong_BR)


class DigitsWeak(Policy):
    """A move by −`shift`..`shift` whole pixels along both axes, 0 from outside; no flips, for they would change some digits."""

    draws = 2  # down, right

    def __init__(self, shift: int = 1) -> None:
        super().__init__()
        _check("shift", shift, 0, 255, "pixels")
        self.shift = shift

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        return _crop(images, uniform, self.shift)


class DigitsStrong(Policy):
    """One bilinear warp, brightness, and a black square, all mild enough for pictures of 8×8 pixels.

    Uniform: moves in ±`shift` pixels, angle in ±`radians`, magnification in 1 ± `scale`, slope in ±`shear`, brightness in
    1 ± `brightness`; the square of side `erase` is centred uniformly and clipped at the border.
    """

    draws = 8  # down, right, angle, magnification, slope, brightness, square's row and column

    def __init__(
        self,
        shift: float = 1.0,
        radians: float = 0.35,
        scale: float = 0.2,
        shear: float = 0.2,
        erase: int = 3,
        brightness: float = 0.3,
    ) -> None:
        super().__init__()
        _check("shift", shift, 0, 255, "pixels")
        _check("radians", radians, 0, 3.1416, "radians")
        _check("scale", scale, 0, 0.9, "around 1")
        _check("shear", shear, 0, 1, "pixels per pixel")
        _check("erase", erase, 0, 255, "pixels")
        _check("brightness", brightness, 0, 1, "around 1")
        self.shift, self.radians, self.scale, self.shear = shift, radians, scale, shear
        self.erase, self.brightness = erase, brightness

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        down_B, right_B, angle_B, scale_B, slope_B, light_B, _, _ = uniform.unbind(1)
        matrix_B23 = ops.affine(
            _between(angle_B, self.radians),
            1 + _between(scale_B, self.scale),
            _between(slope_B, self.shear),
            _between(down_B, self.shift),
            _between(right_B, self.shift),
        )
        images = ops.warp(images, matrix_B23)
        images = ops.look_up(images, ops.brightness_table(images, 1 + _between(light_B, self.brightness)))
        return _cutout(images, uniform[:, 6:8], self.erase)


def _whole(uniform: Tensor, end: int) -> Tensor:
    """Uniform integers 0..end−1, int64. The largest float32 below 1 times any `end` below 2²⁴ rounds to less than `end`."""
    return (uniform * end).long()


def _between(uniform: Tensor, limit: float) -> Tensor:
    """Uniform in ±limit."""
    return (2 * uniform - 1) * limit


def _mirrored(images: Tensor, mirrored_B: Tensor) -> Tensor:
    """Left to right where asked; read from among both, for torch.where takes five times as long on uint8."""
    both = torch.cat([images, images.flip(3)])
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * mirrored_B)


def _crop(images: Tensor, uniform_B2: Tensor, padding: int, mirrored_B: Tensor | None = None) -> Tensor:
    down_B, right_B = (_whole(uniform_B2, 2 * padding + 1) - padding).unbind(1)
    return ops.shift(images, down_B, right_B, mirrored_B=mirrored_B)


def _cutout(images: Tensor, uniform_B2: Tensor, size: int) -> Tensor:
    y_B, x_B = _whole(uniform_B2[:, 0], images.shape[2]), _whole(uniform_B2[:, 1], images.shape[3])
    return ops.cutout(images, y_B, x_B, size)


def _check(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}={value}: expected {low} to {high} {unit}; change augment.weak.{name} or augment.strong.{name}")
