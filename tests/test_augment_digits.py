"""The policies for 8×8 digits."""

import pytest
import torch
from torch import Tensor

from mdcs.augment.policies import DigitsStrong, DigitsWeak
from test_augment_policies import assert_frequency, assert_uniform, compass, places, uniform


def test_digits_weak_moves_by_at_most_a_pixel() -> None:
    policy = DigitsWeak(shift=1)
    row, column = places(policy(compass(9_000), uniform(9_000, policy)))
    assert_uniform((row - 15) * 3 + (column - 15), 9)


def _dot() -> Tensor:
    """One white pixel right of and above the middle of an 8×8 picture: its image shows where a warp sends it."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, 2, 5] = 255
    return image


def test_digits_strong_without_strength_is_identity() -> None:
    still = DigitsStrong(shift=0, radians=0, scale=0, shear=0, erase=0, brightness=0)
    images = torch.randint(0, 256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(still(images, uniform(50, still)), images)


@pytest.mark.parametrize(
    ("strength", "columns"),
    [({"shift": 1.0}, (0, 1)), ({"radians": 0.35}, (2,)), ({"scale": 0.2}, (3,)), ({"shear": 0.2}, (4,)), ({"brightness": 0.3}, (5,))],
    ids=str,
)
def test_each_strength_of_digits_reads_its_own_numbers(strength: dict[str, float], columns: tuple[int, ...]) -> None:
    policy = DigitsStrong(**({"shift": 0, "radians": 0, "scale": 0, "shear": 0, "erase": 0, "brightness": 0} | strength))
    image = (_dot() // 2)[None]
    for column in range(8):
        changed = []
        for value in (0.02, 0.98):
            uniform_1R = torch.full((1, 8), 0.5)
            uniform_1R[0, column] = value
            changed.append(policy(image, uniform_1R))
        assert torch.equal(*changed) != (column in columns)


def test_digits_strong_never_flips() -> None:
    """Without moves the dot stays in its quadrant, and on average where it was."""
    policy = DigitsStrong(shift=0, erase=0)
    images = policy(_dot().expand(5_000, -1, -1, -1), uniform(5_000, policy))[:, 0].float()
    weight = images / images.sum(dim=(1, 2), keepdim=True)
    axis = torch.arange(8).float()
    y, x = (weight.sum(2) * axis).sum(1), (weight.sum(1) * axis).sum(1)
    assert x.min() > 3.5 and y.max() < 3.5
    assert abs(x.mean() - 5) < 0.1 and abs(y.mean() - 2) < 0.1
    assert x.std() > 0.2 and y.std() > 0.2


def test_digits_strong_erases_a_square() -> None:
    policy = DigitsStrong(shift=0, radians=0, scale=0, shear=0, brightness=0, erase=3)
    erased = (policy(torch.full((6_400, 3, 8, 8), 200, dtype=torch.uint8), uniform(6_400, policy)) == 0).all(dim=1)
    area = erased.sum(dim=(1, 2))
    assert set(area.tolist()) == {4, 6, 9}
    assert_frequency(area == 9, 36 / 64)
