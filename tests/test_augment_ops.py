"""Every batched operation against Pillow itself, on square and oblong pictures, with another parameter for every picture of the batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mdcs.augment import ops
from test_augment_reference import PIL_OPS, VECTORS, chw


def _pictures() -> dict[str, np.ndarray]:
    """HWC uint8: photographs, noise, a ramp with few levels, and the edge cases of the histogram operations."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    two_levels = np.full((32, 32, 3), 90, dtype=np.uint8)
    two_levels[3, 4] = (91, 200, 90)
    ramp = np.broadcast_to((np.arange(32, dtype=np.uint8) * 5 + 40)[:, None, None], (32, 32, 3)).copy()
    tiny = noise[:3, :5].copy()
    return {
        "square": VECTORS["image32"],
        "oblong": VECTORS["image64x48"],
        "noise": noise,
        "two levels": two_levels,
        "ramp": ramp,
        "tiny": tiny,
    }


PICTURES = _pictures()
SLOPES = np.linspace(-0.3, 0.3, 41)
FACTORS = np.concatenate([np.linspace(-0.9, 0.9, 37), [-1.0, 1.0]])
BITS = np.arange(1, 9)

# name -> (batched operation of pictures and magnitudes, magnitudes, largest difference in grey levels, largest fraction of values that
# differ). Rotation and shear may decide otherwise about a source exactly between two pixels where another compiler contracts a·x + b.
TABLE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], np.ndarray, int, float]] = {
    "shearX": (lambda x, m: ops.shear_x(x, m), SLOPES, 255, 1e-4),
    "shearY": (lambda x, m: ops.shear_y(x, m), SLOPES, 255, 1e-4),
    "translateX": (lambda x, m: ops.translate(x, 0 * m, m * x.shape[3]), SLOPES * 1.51, 0, 0),
    "translateY": (lambda x, m: ops.translate(x, m * x.shape[2], 0 * m), SLOPES * 1.51, 0, 0),
    "rotate": (lambda x, m: ops.rotate(x, m, fill=128), np.linspace(-30, 30, 61), 255, 1e-4),
    "color": (lambda x, m: ops.color(x, 1 + m), FACTORS, 0, 0),
    "sharpness": (lambda x, m: ops.sharpness(x, 1 + m), FACTORS, 0, 0),
    "brightness": (lambda x, m: ops.look_up(x, ops.brightness_table(x, 1 + m)), FACTORS, 0, 0),
    "contrast": (lambda x, m: ops.look_up(x, ops.contrast_table(x, 1 + m)), FACTORS, 0, 0),
    "posterize": (lambda x, m: ops.look_up(x, ops.posterize_table(x, m.long())), BITS, 0, 0),
    "solarize": (lambda x, m: ops.look_up(x, ops.solarize_table(x, m)), np.linspace(0, 256, 33), 0, 0),
    "invert": (lambda x, m: ops.look_up(x, ops.invert_table(x)), np.zeros(1), 0, 0),
    "autocontrast": (lambda x, m: ops.look_up(x, ops.autocontrast_table(x)), np.zeros(1), 0, 0),
    "equalize": (lambda x, m: ops.look_up(x, ops.equalize_table(x)), np.zeros(1), 0, 0),
}


def assert_close_levels(got: Tensor, expected: Tensor, levels: int, fraction: float) -> None:
    difference = (got.int() - expected.int()).abs()
    assert got.dtype == torch.uint8 and got.shape == expected.shape
    assert difference.max() <= levels and (difference > 0).float().mean() <= fraction, (
        int(difference.max()),
        (difference > 0).float().mean(),
    )


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", TABLE)
def test_operation_equals_pillow(name: str, picture: str) -> None:
    operation, magnitudes, levels, fraction = TABLE[name]
    pixels = PICTURES[picture]
    expected = torch.stack([chw(PIL_OPS[name](Image.fromarray(pixels), m)) for m in magnitudes.tolist()])
    got = operation(chw(pixels).expand(len(magnitudes), -1, -1, -1), torch.from_numpy(magnitudes).double())
    assert_close_levels(got, expected, levels, fraction)


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast"])
def test_statistics_are_of_each_picture_alone(name: str) -> None:
    batch = torch.stack([chw(PICTURES[p]) for p in ("square", "two levels", "ramp")])
    magnitude = torch.full((3,), 0.7, dtype=torch.float64)
    alone = [TABLE[name][0](row[None], magnitude[:1]) for row in batch]
    assert torch.equal(TABLE[name][0](batch, magnitude), torch.cat(alone))


@pytest.mark.parametrize("picture", ["square", "oblong"])
def test_weak_rotation_equals_pillow_with_black_corners(picture: str) -> None:
    degrees = np.linspace(-15, 15, 101)
    expected = torch.stack([chw(Image.fromarray(PICTURES[picture]).rotate(d)) for d in degrees.tolist()])
    got = ops.rotate(chw(PICTURES[picture]).expand(101, -1, -1, -1), torch.from_numpy(degrees), fill=0)
    assert_close_levels(got, expected, 255, 1e-4)


@pytest.mark.parametrize("picture", ["square", "oblong"])
def test_shift_is_a_crop_of_the_padded_picture(picture: str) -> None:
    pixels = PICTURES[picture]
    height, width, _ = pixels.shape
    places = [(top, left, mirrored) for top in range(9) for left in range(9) for mirrored in (False, True)]
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
    crops = [padded[top : top + height, left : left + width][:, :: -1 if mirrored else 1] for top, left, mirrored in places]
    down, right, mirrored = (torch.tensor(column) for column in zip(*places, strict=True))
    got = ops.shift(chw(pixels).expand(len(places), -1, -1, -1), down - 4, right - 4, mirrored_B=mirrored)
    assert torch.equal(got, torch.stack([chw(c.copy()) for c in crops]))


def test_shift_by_more_than_the_picture_leaves_only_fill() -> None:
    image = chw(PICTURES["tiny"])[None]
    assert (ops.shift(image, torch.tensor([-70]), torch.tensor([90]), fill=7) == 7).all()


def test_cutout_equals_the_golden_masks() -> None:
    y, x = torch.from_numpy(VECTORS["cutout/seed3_centres_yx"]).unbind(1)
    ones = torch.ones(8, 3, 32, 32, dtype=torch.uint8)
    masks = torch.from_numpy(VECTORS["cutout/seed3_masks"]).to(torch.uint8)
    assert torch.equal(ops.cutout(ones, y, x, 16), masks[:, None].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("size", "y", "x", "rows", "columns"), [(3, 0, 4, (0, 2), (3, 5)), (4, 5, 0, (3, 6), (0, 2)), (0, 2, 2, (0, 0), (0, 0))]
)
def test_cutout_is_clipped_at_the_border(size: int, y: int, x: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    expected = torch.full((1, 3, 6, 5), 9, dtype=torch.uint8)
    expected[..., rows[0] : rows[1], columns[0] : columns[1]] = 0
    got = ops.cutout(torch.full((1, 3, 6, 5), 9, dtype=torch.uint8), torch.tensor([y]), torch.tensor([x]), size)
    assert torch.equal(got, expected)


def _matrix(radians: float = 0.0, scale: float = 1.0, slope: float = 0.0, down: float = 0.0, right: float = 0.0) -> Tensor:
    return ops.affine(*(torch.tensor([value]) for value in (radians, scale, slope, down, right)))


@pytest.mark.parametrize("picture", ["square", "oblong"])
def test_warp_without_change_and_by_whole_pixels(picture: str) -> None:
    image = chw(PICTURES[picture])[None]
    assert torch.equal(ops.warp(image, _matrix()), image)
    moved = ops.warp(image, _matrix(down=3, right=-5))
    # The sampling grid is float32, so a source may fall 1e-6 off its pixel and a level 1e-4 off: it rounds back except at the border.
    assert_close_levels(moved, ops.shift(image, torch.tensor([3]), torch.tensor([-5])), 1, 0.001)


def test_warp_equals_pillow_bilinear_inside() -> None:
    """Pillow's AFFINE matrix is about the corner, ours about the centre; it leaves half-covered border pixels to the fill."""
    pixels = PICTURES["oblong"]
    height, width, _ = pixels.shape
    matrix = _matrix(radians=0.3, scale=1.15, slope=-0.2, down=0.7, right=-0.4)
    (a, b, c), (d, e, f) = matrix[0].double().tolist()
    corner = (a, b, c + width / 2 - a * width / 2 - b * height / 2, d, e, f + height / 2 - d * width / 2 - e * height / 2)
    red = Image.fromarray(pixels[..., 0].astype(np.float32))  # floats, for on bytes Pillow truncates what we round
    expected = torch.from_numpy(np.array(red.transform((width, height), Image.Transform.AFFINE, corner, Image.Resampling.BILINEAR)))
    got = ops.warp(chw(pixels)[None], matrix)[0, 0]
    assert_close_levels(got[20:-20, 14:-14], expected.round().to(torch.uint8)[20:-20, 14:-14], 1, 0.01)


def test_affine_turns_magnifies_and_shears_as_named() -> None:
    image = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    image[..., 4, 3:6] = 200  # a short horizontal bar through the centre
    upright = ops.warp(image, _matrix(radians=torch.pi / 2))
    assert (upright[..., 3:6, 4] >= 199).all() and upright[..., 4, [3, 5]].max() <= 1
    assert (ops.warp(image, _matrix(scale=2.0)) > 99).sum() > 2 * (image > 99).sum()
    column = image.mT.contiguous()
    sheared = ops.warp(column, _matrix(slope=1.0))
    assert (sheared[0, 0, [3, 4, 5], [5, 4, 3]] >= 199).all()
