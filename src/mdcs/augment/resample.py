"""Affine maps that read between pixels, each picture with its own matrix: `Image.transform(AFFINE, matrix, BILINEAR | BICUBIC)`.

A matrix (a b c; d e f) takes the centre of an output pixel, (x + ½, y + ½) from the upper left corner, to the place that it is read from:
(a x + b y + c, d x + e y + f). Coordinates are float64, as Pillow's, for it truncates what it interpolates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcs.augment.ops import truncated


def transform(images_B3HW: Tensor, matrix_B23: Tensor, cubic: bool, fill: Sequence[int], along: str = "both") -> Tensor:
    """Each picture seen through its matrix (float64); `fill` (3 levels) where it reads from outside. `cubic`: Pillow's, a = −1.

    `along`: "x" if rows read from themselves, (d e f) = (0 1 0), "y" if columns do. The result is that of "both", with 4 taps for 16.
    """
    if along == "y":
        return transform(images_B3HW.mT, matrix_B23.flip(1)[..., [1, 0, 2]], cubic, fill, "x").mT
    height, width = images_B3HW.shape[2:]
    y_H1 = torch.arange(height, device=images_B3HW.device, dtype=torch.float64)[:, None] + 0.5
    x_W = torch.arange(width, device=images_B3HW.device, dtype=torch.float64) + 0.5
    (a, b, c), (d, e, f) = ((number[:, None, None] for number in row.unbind(1)) for row in matrix_B23.unbind(1))
    source_x_BHW, source_y_BHW = a * x_W + b * y_H1 + c, d * x_W + e * y_H1 + f
    inside_BHW = (source_x_BHW >= 0) & (source_x_BHW < width) & (source_y_BHW >= 0) & (source_y_BHW < height)
    left_BHW, top_BHW = (source_x_BHW - 0.5).floor(), (source_y_BHW - 0.5).floor()
    dx_B1HW, dy_B1HW = (source_x_BHW - 0.5 - left_BHW)[:, None], (source_y_BHW - 0.5 - top_BHW)[:, None]
    reach, mix = ((-1, 0, 1, 2), _cubic) if cubic else ((0, 1), _linear)
    column_BHW, row_BHW = left_BHW.long(), top_BHW.long()
    columns = [(column_BHW + step).clamp_(0, width - 1) for step in reach]  # the border pixel goes on beyond the border
    rows = [(row_BHW + step).clamp_(0, height - 1).mul_(width) for step in (reach if along == "both" else (0,))]
    pixels_B3P = images_B3HW.flatten(2)

    def read(place_BHW: Tensor) -> Tensor:
        place_B3P = place_BHW.flatten(1).unsqueeze(1).expand(-1, 3, -1)
        return pixels_B3P.gather(2, place_B3P).view(images_B3HW.shape).short()  # differences of levels are exact in any type

    across = [mix([read(row + column) for column in columns], dx_B1HW) for row in rows]
    levels_B3HW = truncated((mix(across, dy_B1HW) if along == "both" else across[0]).clamp_(0, 255))
    fill_311 = torch.stack([levels_B3HW.new_full((1, 1), level) for level in fill])  # no copy from the host to wait for
    return torch.where(inside_BHW[:, None], levels_B3HW, fill_311)


def rotation(degrees_B: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, 3): counter-clockwise about the picture's centre, `Image.rotate`, which rounds sine and cosine to 15 decimals."""
    radians_B = -degrees_B.double().remainder(360).deg2rad()
    cos, sin = radians_B.cos().round(decimals=15), radians_B.sin().round(decimals=15)
    middle_x, middle_y = width / 2, height / 2
    shift_x = cos * -middle_x + sin * -middle_y + middle_x
    shift_y = -sin * -middle_x + cos * -middle_y + middle_y
    return _matrix((cos, sin, shift_x), (-sin, cos, shift_y))


def shear_x(slope_B: Tensor) -> Tensor:
    """(B, 2, 3): row y reads from slope·y further right."""
    one, zero = torch.ones_like(slope_B), torch.zeros_like(slope_B)
    return _matrix((one, slope_B, zero), (zero, one, zero))


def shear_y(slope_B: Tensor) -> Tensor:
    """(B, 2, 3): column x reads from slope·x further down."""
    one, zero = torch.ones_like(slope_B), torch.zeros_like(slope_B)
    return _matrix((one, zero, zero), (slope_B, one, zero))


def translation(right_B: Tensor, down_B: Tensor) -> Tensor:
    """(B, 2, 3): every pixel reads from `right` and `down` pixels further."""
    one, zero = torch.ones_like(right_B), torch.zeros_like(right_B)
    return _matrix((one, zero, right_B), (zero, one, down_B))


def _matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _linear(values: list[Tensor], d: Tensor) -> Tensor:
    v1, v2 = values
    return v1 + (v2 - v1) * d


def _cubic(values: list[Tensor], d: Tensor) -> Tensor:
    v1, v2, v3, v4 = values
    return v2 + d * ((v3 - v1) + d * ((2 * (v1 - v2) + v3 - v4) + d * (v2 - v1 - v3 + v4)))
