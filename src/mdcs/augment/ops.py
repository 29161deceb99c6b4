"""Operations on batches of uint8 pictures (B, 3, H, W) with one parameter per picture, a (B,) tensor on the pictures' device.

Pixels are Pillow's: where Pillow truncates, clips or works in 16.16 fixed point, so do these. Pictures need not be square.
Three families: *places* move pixels (`take` reads every picture at its own coordinates), *tables* map grey levels (`look_up` reads a
(B, 3, 256) table), *blends* mix a picture with a degenerate of itself. G = 256 grey levels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def rows_at_a_time(images: Tensor) -> int:
    """Pictures to change at a time where intermediate results are several times their size: bounds the memory, to about 1 GB on an
    accelerator; on a CPU they stay in its cache, which is three times as fast."""
    return max(1, (2**17 if images.device.type == "cpu" else 2**22) // max(1, images.shape[2] * images.shape[3]))


def sorts(images: Tensor) -> bool:
    """Whether to sort pictures by their operation, so that each costs only its own: on a CPU. On an accelerator the host would have to wait
    for the sizes of the groups, and no graph could be captured, so there every picture gets every operation and keeps the one it drew."""
    return images.device.type == "cpu"


def truncated(values: Tensor) -> Tensor:
    """Floats in 0..255 as uint8. On a CPU by way of int16, which takes a third of the time."""
    return (values.short() if values.device.type == "cpu" else values).to(torch.uint8)


def take(images_B3HW: Tensor, y: Tensor, x: Tensor, fill: int) -> Tensor:
    """out[b, :, i, j] = images[b, :, y[b, i, j], x[b, i, j]], or `fill` outside. y, x: integers that broadcast to (B, H, W)."""
    return take_at(images_B3HW, framed_place(y, x, *images_B3HW.shape[2:]), fill)


def framed_place(y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """(B, P) int64: pixel (y, x) in the flattened picture with a frame of one pixel, onto which every place outside is clamped."""
    place_BHW = y.clamp(-1, height).mul_(width + 2) + x.clamp(-1, width).add_(width + 3)
    return place_BHW.long().flatten(1)


def take_at(images_B3HW: Tensor, place_BP: Tensor, fill: int) -> Tensor:
    """out[b, c, p] = framed[b, c, place[b, p]] with a frame of `fill`; see `framed_place`."""
    framed_B3P = F.pad(images_B3HW, (1, 1, 1, 1), value=fill).flatten(2)
    return framed_B3P.gather(2, place_BP.unsqueeze(1).expand(-1, 3, -1)).view(images_B3HW.shape)


def shift(images_B3HW: Tensor, down_B: Tensor, right_B: Tensor, fill: int = 0, mirrored_B: Tensor | None = None) -> Tensor:
    """Picture b seen through a window moved by `down` and `right` whole pixels (int64), then mirrored left to right where asked (bool).

    A random crop after padding p is a move by −p..p; a flip alone is a move by 0.
    """
    rows_H, columns_W = _axes(images_B3HW)
    columns_BW = columns_W.expand(len(images_B3HW), -1)
    if mirrored_B is not None:
        columns_BW = torch.where(mirrored_B[:, None], columns_W.flip(0), columns_W)
    y_BH1, x_B1W = (rows_H + down_B[:, None])[:, :, None], (columns_BW + right_B[:, None])[:, None, :]
    return take(images_B3HW, y_BH1.int(), x_B1W.int(), fill)  # int32: sums of B·H·W places are four times as fast


def translate(images_B3HW: Tensor, down_B: Tensor, right_B: Tensor, fill: int = 128) -> Tensor:
    """`shift` by fractions of a pixel, nearest neighbour: `Image.transform(AFFINE, (1, 0, right, 0, 1, down))`."""
    return shift(images_B3HW, (down_B + 0.5).floor().long(), (right_B + 0.5).floor().long(), fill)


def moved(degrees_B: Tensor, down_B: Tensor, right_B: Tensor, height: int, width: int) -> Tensor:
    """(B, P) for `take_at`: `rotate`, or where that is by 0, `translate`."""
    rows_H = torch.arange(height, device=degrees_B.device, dtype=torch.int32)
    columns_W = torch.arange(width, device=degrees_B.device, dtype=torch.int32)
    angle_B11 = degrees_B.double().deg2rad()[:, None, None]
    cos, sin = angle_B11.cos(), angle_B11.sin()
    middle_y, middle_x = height / 2, width / 2
    start_x = middle_x - cos * (middle_x - 0.5) + sin * (middle_y - 0.5)  # source of the centre of pixel (0, 0)
    start_y = middle_y - sin * (middle_x - 0.5) - cos * (middle_y - 0.5)
    whole_y, whole_x = ((pixels_B + 0.5).floor()[:, None, None] for pixels_B in (down_B, right_B))
    fixed_cos, fixed_sin = _fixed_point(cos), _fixed_point(sin)
    x_BHW = (_fixed_point(start_x + whole_x) + fixed_cos * columns_W) + _fixed_point(-sin) * rows_H[:, None]
    y_BHW = (_fixed_point(start_y + whole_y) + fixed_sin * columns_W) + fixed_cos * rows_H[:, None]
    return framed_place(y_BHW.bitwise_right_shift_(16), x_BHW.bitwise_right_shift_(16), height, width)


def rotate(images_B3HW: Tensor, degrees_B: Tensor, fill: int) -> Tensor:
    """Turn counter-clockwise about the centre, nearest neighbour: `Image.rotate`, whose 16.16 fixed point decides ties."""
    still_B = torch.zeros_like(degrees_B)
    return take_at(images_B3HW, moved(degrees_B, still_B, still_B, *images_B3HW.shape[2:]), fill)


def shear_x(images_B3HW: Tensor, slope_B: Tensor, fill: int = 128) -> Tensor:
    """Row y moves by slope·(y + ½); see `shear_y`."""
    return shear_y(images_B3HW.mT, slope_B, fill).mT


def shear_y(images_B3HW: Tensor, slope_B: Tensor, fill: int = 128) -> Tensor:
    """Column x moves by slope·(x + ½): `Image.transform(AFFINE, (1, 0, 0, slope, 1, 0), BICUBIC)`, Pillow's cubic (a = −1), truncated."""
    return shear_at(images_B3HW, shear_taps(slope_B, *images_B3HW.shape[2:]), fill)


class Shear(NamedTuple):
    """Where the pixels of vertically sheared pictures come from, P = H·W."""

    taps_B4P: Tensor  # int64: the pixels above and below each source
    between_BP: Tensor  # float64: where between the middle two it lies
    inside_BP: Tensor  # bool: whether it is inside the picture

    def rows(self, row: Tensor) -> "Shear":
        """Some rows, in that order."""
        return Shear(*(column.index_select(0, row) for column in self))


def shear_taps(slope_B: Tensor, height: int, width: int) -> Shear:
    """For `shear_at`."""
    rows_H1 = torch.arange(height, device=slope_B.device)[:, None]
    columns_W = torch.arange(width, device=slope_B.device)
    source_BHW = (rows_H1 + 0.5) + slope_B.double()[:, None, None] * (columns_W + 0.5)
    top_BHW = (source_BHW - 0.5).floor()
    taps = [(top_BHW.long() + k).clamp_(0, height - 1) * width + columns_W for k in (-1, 0, 1, 2)]
    inside_BHW = (source_BHW >= 0) & (source_BHW < height)
    return Shear(torch.stack(taps, dim=1).flatten(2), (source_BHW - 0.5 - top_BHW).flatten(1), inside_BHW.flatten(1))


def shear_at(images_B3HW: Tensor, shear: Shear, fill: int) -> Tensor:
    """Cubic interpolation of the four taps, or `fill` outside."""
    pixels_B34P = images_B3HW.flatten(2).unsqueeze(2).expand(-1, -1, 4, -1)
    v1, v2, v3, v4 = pixels_B34P.gather(3, shear.taps_B4P.unsqueeze(1).expand(-1, 3, -1, -1)).short().unbind(2)
    d, bend = shear.between_BP.unsqueeze(1), v2 - v1  # differences of levels are exact in any type, so the widest comes last
    cubic = v2 + d * ((v3 - v1) + d * ((v3 - v4 - 2 * bend) + d * (v4 - v3 + bend)))
    return truncated(torch.where(shear.inside_BP.unsqueeze(1), cubic.clamp_(0, 255), fill)).view(images_B3HW.shape)


def warp(images_B3HW: Tensor, matrix_B23: Tensor) -> Tensor:
    """Bilinear: out at (x, y) reads `matrix`·(x, y, 1), in pixels from the picture's centre; 0 outside; rounded to the nearest level."""
    height, width = images_B3HW.shape[2:]
    rows_H, columns_W = _axes(images_B3HW)
    y_H1, x_W = (rows_H - (height - 1) / 2).float()[:, None], (columns_W - (width - 1) / 2).float()
    # Not a matrix product: its order of summation, so its rounding, may depend on the size of the batch.
    source_BHW = [m[:, 0, None, None] * x_W + m[:, 1, None, None] * y_H1 + m[:, 2, None, None] for m in matrix_B23.unbind(1)]
    grid_BHW2 = torch.stack([source_BHW[0] * (2 / width), source_BHW[1] * (2 / height)], dim=-1)
    return truncated(F.grid_sample(images_B3HW.float(), grid_BHW2, align_corners=False).round())


def affine(radians_B: Tensor, scale_B: Tensor, slope_B: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """(B, 2, 3) for `warp`: R(radians)·(1, slope; 0, 1)/scale in axes (x right, y down), then a window moved by (right, down) pixels."""
    cos, sin = radians_B.cos() / scale_B, radians_B.sin() / scale_B
    x_row, y_row = (cos, cos * slope_B - sin, right_B), (sin, sin * slope_B + cos, down_B)
    return torch.stack([torch.stack(x_row, dim=1), torch.stack(y_row, dim=1)], dim=1)


def cutout(images_B3HW: Tensor, y_B: Tensor, x_B: Tensor, size: int) -> Tensor:
    """Black (0) square of side `size` about pixel (y, x), from −size//2 on, clipped at the border. arXiv:1708.04552."""
    rows_H, columns_W = _axes(images_B3HW)
    top_B1, left_B1 = y_B[:, None] - size // 2, x_B[:, None] - size // 2
    above_or_below_BH = (rows_H < top_B1) | (rows_H >= top_B1 + size)
    beside_BW = (columns_W < left_B1) | (columns_W >= left_B1 + size)
    kept_B1HW = (above_or_below_BH.to(torch.uint8)[:, :, None] | beside_BW.to(torch.uint8)[:, None, :]).unsqueeze(1)
    return images_B3HW & kept_B1HW.neg_()  # −1 is all bits


def color(images_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    """`ImageEnhance.Color`: blend with the picture's luma."""
    pixels_B3HW = images_B3HW.float()
    return _blend(_luma(pixels_B3HW), pixels_B3HW, factor_B)


def sharpness(images_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    """`ImageEnhance.Sharpness`: blend with the picture smoothed by (1 1 1; 1 5 1; 1 1 1)/13, whose outermost pixels stay as they are."""
    pixels_B3HW = images_B3HW.float()
    smooth_B3HW = pixels_B3HW.clone()
    inner = smooth_B3HW[..., 1:-1, 1:-1]
    across = (pixels_B3HW[..., :-2] + pixels_B3HW[..., 1:-1]).add_(pixels_B3HW[..., 2:])
    total = (across[..., :-2, :] + across[..., 1:-1, :]).add_(across[..., 2:, :]).add_(inner, alpha=4)
    inner.copy_(total.div_(13).round_())  # 13 is odd, so there are no ties
    return _blend(smooth_B3HW, pixels_B3HW, factor_B)


def jitter(images_B3HW: Tensor, factors_B3: Tensor, order_B3: Tensor) -> Tensor:
    """`ImageEnhance.Brightness`, `Contrast` and `Color` by the three factors, in each picture's own order: (B, 3) int64, 0 to 2 each.

    All three blend with a degenerate, black, the mean luma or the luma, so nothing has to be sorted by operation.
    """
    pixels_B3HW = images_B3HW.float()
    for operation_B in order_B3.unbind(1):
        luma_B1HW = _luma(pixels_B3HW)
        # Products with 0 and 1: exact, and on a CPU several times as fast as a choice by torch.where.
        mean_B111, takes_luma_B111 = ((operation_B == number)[:, None, None, None].float() for number in (1, 2))
        degenerate_B1HW = (luma_B1HW * takes_luma_B111).add_(mean_B111.mul_(_mean_luma(luma_B1HW)))
        # Whole levels, in float32 still: conversions to uint8 and back would take as long as all else here.
        pixels_B3HW = _mix(degenerate_B1HW, pixels_B3HW, factors_B3.gather(1, operation_B[:, None])).floor_()
    return truncated(pixels_B3HW)


def look_up(images_B3HW: Tensor, table_B3G: Tensor) -> Tensor:
    """out[b, c, i, j] = table[b, c, images[b, c, i, j]]; table (B, 3, 256) or (B, 1, 256) uint8."""
    return table_B3G.expand(-1, 3, -1).gather(2, images_B3HW.flatten(2).long()).view(images_B3HW.shape)


def invert_table(images_B3HW: Tensor) -> Tensor:
    """(B, 1, 256): 255 − g."""
    return (255 - _levels(images_B3HW)).to(torch.uint8).expand(len(images_B3HW), 1, -1)


def posterize_table(images_B3HW: Tensor, bits_B: Tensor) -> Tensor:
    """(B, 1, 256): keep the `bits` (int64, 1..8) highest bits of each level."""
    low_B11 = (8 - bits_B)[:, None, None]
    return (_levels(images_B3HW) >> low_B11 << low_B11).to(torch.uint8)


def solarize_table(images_B3HW: Tensor, threshold_B: Tensor) -> Tensor:
    """(B, 1, 256): g below `threshold`, else 255 − g."""
    levels_G = _levels(images_B3HW)
    return torch.where(levels_G < threshold_B[:, None, None], levels_G, 255 - levels_G).to(torch.uint8)


def solarize_add_table(images_B3HW: Tensor, add_B: Tensor) -> Tensor:
    """(B, 1, 256): g + `add` (int64), at most 255, where g is below 128."""
    levels_G = _levels(images_B3HW)
    return torch.where(levels_G < 128, (levels_G + add_B[:, None, None]).clamp(max=255), levels_G).to(torch.uint8)


def brightness_table(images_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    """(B, 1, 256): `ImageEnhance.Brightness`, a blend with black."""
    levels_11G = _levels(images_B3HW).float()[None, None]
    return _blend(torch.zeros_like(levels_11G), levels_11G, factor_B)


def contrast_table(images_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    """(B, 1, 256): `ImageEnhance.Contrast`, a blend with the picture's mean luma, rounded."""
    mean_B11 = _mean_luma(_luma(images_B3HW.float()))[:, 0]
    return _blend(mean_B11, _levels(images_B3HW).float()[None, None], factor_B)


def autocontrast_table(images_B3HW: Tensor) -> Tensor:
    """(B, 3, 256): `ImageOps.autocontrast`: each channel's darkest level goes to 0, its brightest to 255; a constant channel stays."""
    pixels_B3P = images_B3HW.flatten(2)
    low_B31, high_B31 = (
        pixels_B3P.amin(2, keepdim=True).double(),
        pixels_B3P.amax(2, keepdim=True).double(),
    )  # three times `aminmax`'s speed
    levels_G = _levels(images_B3HW)
    scale_B31 = torch.full_like(low_B31, 255) / (high_B31 - low_B31)  # `255 / tensor` multiplies by the reciprocal, and truncation shows it
    stretched_B3G = (levels_G * scale_B31 - low_B31 * scale_B31).clamp(0, 255)
    return torch.where(high_B31 > low_B31, stretched_B3G, levels_G).to(torch.uint8)


def equalize_table(images_B3HW: Tensor) -> Tensor:
    """(B, 3, 256): `ImageOps.equalize` with its integer steps; a channel without 255 pixels below its brightest level stays."""
    values_B3P = images_B3HW.flatten(2).long()
    counts_B3G = torch.zeros(*values_B3P.shape[:2], 256, dtype=torch.int64, device=values_B3P.device)
    counts_B3G.scatter_add_(2, values_B3P, torch.ones_like(values_B3P))
    brightest_B31 = counts_B3G.gather(2, values_B3P.amax(dim=2, keepdim=True))
    step_B31 = (values_B3P.shape[2] - brightest_B31) // 255
    below_B3G = counts_B3G.cumsum(2) - counts_B3G
    equal_B3G = ((step_B31 // 2 + below_B3G) // step_B31.clamp(min=1)).clamp(max=255)
    return torch.where(step_B31 > 0, equal_B3G, _levels(images_B3HW)).to(torch.uint8)


def _axes(images: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(images.shape[2], device=images.device), torch.arange(images.shape[3], device=images.device)


def _levels(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _fixed_point(number: Tensor) -> Tensor:
    return (number * 65536 + 0.5).floor().int()


def _luma(pixels_B3HW: Tensor) -> Tensor:
    """(B, 1, H, W), ITU-R 601-2 in 16 bits, as `Image.convert("L")`: (19595 R + 38470 G + 7471 B + 2¹⁵) >> 16.

    float32 in and out: the sum is below 2²⁴, so all of it is exact.
    """
    red, green, blue = pixels_B3HW.split(1, dim=1)
    return (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).mul_(2**-16).floor_()


def _mean_luma(luma_B1HW: Tensor) -> Tensor:
    """(B, 1, 1, 1), rounded half up."""
    pixels = luma_B1HW.shape[2] * luma_B1HW.shape[3]
    total_B111 = luma_B1HW.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    return ((2 * total_B111 + pixels) / (2 * pixels)).floor().float()


def _mix(degenerate: Tensor, pixels: Tensor, factor_B: Tensor) -> Tensor:
    """degenerate + factor·(pixels − degenerate) in float32, clipped. The first axis is B."""
    factor = factor_B.float().view(-1, *[1] * (pixels.dim() - 1))
    return ((pixels - degenerate) * factor).add_(degenerate).clamp_(0, 255)


def _blend(degenerate: Tensor, pixels: Tensor, factor_B: Tensor) -> Tensor:
    """`Image.blend`: `_mix`, truncated."""
    return truncated(_mix(degenerate, pixels, factor_B))
