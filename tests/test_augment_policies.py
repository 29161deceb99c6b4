"""The policies: each against the vectors, each random choice against its stated frequency, and the whole against Pillow pipelines."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2
from torch import Tensor

from mdcs.augment.autoaugment import SUB_POLICIES, AutoAugment
from mdcs.augment.policies import CifarStrong, CifarWeak, DigitsStrong, DigitsWeak, Identity
from mdcs.errors import UserError
from mdcs.types import Policy
from test_augment_reference import META, PIL_STRONG, PIL_WEAK, SIGNED, VECTORS, chw, golden

IMAGE_3HW = chw(VECTORS["image32"])


def uniform(rows: int, policy: Policy, seed: int = 0) -> Tensor:
    return torch.rand(rows, policy.draws, generator=torch.Generator().manual_seed(seed))


def places(images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Source row and column of the pixel at (16, 16), of pictures made from `compass()`: int64 (B,), (B,)."""
    return images_B3HW[:, 0, 16, 16].long(), images_B3HW[:, 1, 16, 16].long()


def compass(rows: int) -> Tensor:
    """Pictures whose pixels say where they are: red is the row, green the column, blue is 255 everywhere."""
    axis = torch.arange(32, dtype=torch.uint8)
    image = torch.stack([axis[:, None].expand(32, 32), axis.expand(32, 32), torch.full((32, 32), 255, dtype=torch.uint8)])
    return image.expand(rows, -1, -1, -1)


def assert_uniform(choices: Tensor, num: int) -> None:
    """Chi-square at a level of 1e-4."""
    counts = torch.bincount(choices, minlength=num).double()
    assert len(counts) == num
    expected = len(choices) / num
    assert chi2.sf(float(((counts - expected) ** 2 / expected).sum()), num - 1) > 1e-4


def assert_frequency(hits: Tensor, probability: float) -> None:
    """Within four standard errors of a binomial; certain events exactly."""
    error = 4 * (probability * (1 - probability) / len(hits)) ** 0.5
    assert abs(hits.double().mean().item() - probability) <= error


def test_table_is_the_published_one() -> None:
    published = [tuple((r["op" + i], r["p" + i], r["idx" + i]) for i in "12") for r in META["cifar10_policy"]]
    ours = [
        tuple((name.replace("_x", "X").replace("_y", "Y"), tenths / 10, level) for name, tenths, level in pair) for pair in SUB_POLICIES
    ]
    assert ours == published


# Largest difference in grey levels and largest fraction of values that differ, by the coarsest operation of the sub-policy.
DEVIATION = {"shear_y": (3, 0.02), "rotate": (255, 1e-3)}


@pytest.mark.parametrize("k", range(25))
def test_sub_policy_equals_the_golden_pictures(k: int) -> None:
    """Both signs, in one batch with other sub-policies, which must not matter."""
    sub_policy_B = torch.tensor([k, k, (k + 7) % 25, (k + 1) % 25])
    signs_B2 = torch.tensor([1, 0, 1, 0])[:, None].expand(-1, 2)
    got = AutoAugment().apply_chosen(IMAGE_3HW.expand(4, -1, -1, -1), sub_policy_B, torch.ones(4, 2, dtype=torch.bool), signs_B2)
    expected = torch.stack([chw(golden(f"cifar10policy/{k:02d}/{sign}")) for sign in ("plus", "minus")])
    levels, fraction = max((DEVIATION.get(name, (0, 0.0)) for name, _, _ in SUB_POLICIES[k]), default=(0, 0.0))
    difference = (got[:2].int() - expected.int()).abs()
    assert difference.max() <= levels and (difference > 0).float().mean() <= fraction


def test_autoaugment_leaves_its_input_and_closed_gates_alone() -> None:
    images = IMAGE_3HW.repeat(25, 1, 1, 1)
    closed = AutoAugment().apply_chosen(images, torch.arange(25), torch.zeros(25, 2, dtype=torch.bool), torch.ones(25, 2).long())
    assert torch.equal(closed, images)
    AutoAugment().apply_chosen(images, torch.arange(25), torch.ones(25, 2, dtype=torch.bool), torch.ones(25, 2).long())
    assert torch.equal(images, IMAGE_3HW.repeat(25, 1, 1, 1))


def test_sub_policies_gates_and_signs_have_their_frequencies() -> None:
    policy = AutoAugment()
    sub_policy_B, gates_B2, signs_B2 = policy.choose(uniform(100_000, policy))
    assert_uniform(sub_policy_B, 25)
    for k, pair in enumerate(SUB_POLICIES):
        mine = sub_policy_B == k
        for step, (_, tenths, _) in enumerate(pair):
            assert_frequency(gates_B2[mine, step], tenths / 10)
            assert_frequency(signs_B2[mine, step] > 0, 0.5)
    assert_uniform((signs_B2[:, 0] > 0).long() * 2 + (signs_B2[:, 1] > 0).long(), 4)
    assert set(signs_B2.unique().tolist()) == {0, 1}


def test_choices_at_the_ends_of_the_unit_interval() -> None:
    ends = torch.tensor([[0.0], [1 - 2**-24]]).expand(2, 5)
    sub_policy_B, gates_B2, signs_B2 = AutoAugment().choose(ends)
    assert sub_policy_B.tolist() == [0, 24] and gates_B2.tolist() == [[True, True], [False, False]]
    assert signs_B2.tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("name", sorted({name for pair in SUB_POLICIES for name, _, _ in pair}))
def test_only_the_published_operations_have_a_sign(name: str) -> None:
    steps = [(k, i) for k, pair in enumerate(SUB_POLICIES) for i in (0, 1) if pair[i][0] == name and (name, pair[i][2]) != ("color", 0)]
    k, step = steps[0]
    gates = torch.zeros(2, 2, dtype=torch.bool)
    gates[:, step] = True
    signs = torch.tensor([[1, 1], [0, 0]])
    plus, minus = AutoAugment().apply_chosen(IMAGE_3HW.expand(2, -1, -1, -1), torch.tensor([k, k]), gates, signs)
    assert torch.equal(plus, minus) == (name.replace("_x", "X").replace("_y", "Y") not in SIGNED)


def _cifar_without_colour() -> list[tuple[Policy, Callable[[Tensor], Tensor]]]:
    """The two CIFAR policies with everything but crop and flip switched off: no rotation, no hole, gates closed by their numbers."""

    def close(uniform_BR: Tensor) -> Tensor:
        uniform_BR[:, 4:6] = 0.95  # no gate of the table opens above 0.9
        return uniform_BR

    return [(CifarWeak(degrees=0.0), lambda u: u), (CifarStrong(cutout=0), close)]


@pytest.mark.parametrize(("policy", "switch_off"), _cifar_without_colour(), ids=["weak", "strong"])
def test_crops_are_uniform_and_half_are_mirrored(policy: Policy, switch_off: Callable[[Tensor], Tensor]) -> None:
    rows = 8_000
    images = policy(compass(rows), switch_off(uniform(rows, policy)))
    mirrored = images[:, 1, 16, 15] > images[:, 1, 16, 16]
    row, column = places(images)
    down, right = row - 16, column - torch.where(mirrored, 15, 16)
    assert_frequency(mirrored, 0.5)
    assert_uniform((down + 4) * 9 + (right + 4), 81)
    assert_uniform((right + 4) * 2 + mirrored, 18)
    assert (images[:, 2] == 0).any(dim=(1, 2)).float().mean() > 0.9  # zeros from the padding


def test_weak_angles_are_uniform_within_the_limit() -> None:
    """Two points 21 pixels apart in a row, turned by a, differ by 21·sin a rows; nearest neighbour knows them to ±½."""
    policy = CifarWeak(padding=0, degrees=15.0)
    uniform_BR = uniform(2_000, policy)
    uniform_BR[:, 2] = 0.9  # not mirrored
    rows_BHW = policy(compass(2_000), uniform_BR)[:, 0].float()
    degrees = torch.rad2deg(torch.asin((rows_BHW[:, 16, 26] - rows_BHW[:, 16, 5]) / 21))
    expected = 15 * (2 * uniform_BR[:, 3] - 1)
    assert (degrees - expected).abs().max() < np.rad2deg(1 / 21 / np.cos(np.deg2rad(15))) + 0.1
    assert_uniform(((expected / 15 + 1) * 10).long(), 20)


def test_cutout_centres_are_uniform_and_holes_black() -> None:
    policy = CifarStrong(padding=0, cutout=2)
    uniform_BR = uniform(20_000, policy)
    uniform_BR[:, 4:6] = 0.95  # no gate of the table opens above 0.9
    holes_BP = (policy(compass(20_000), uniform_BR)[:, 2] == 0).flatten(1)
    centre = (holes_BP * torch.arange(1024)).amax(dim=1)  # a hole of 2 covers rows y−1 and y: its last pixel is its centre
    assert_uniform(centre, 1024)
    assert torch.equal(holes_BP.sum(1), (1 + (centre // 32 > 0).long()) * (1 + (centre % 32 > 0).long()))


def test_cifar_strong_reads_separate_numbers_for_autoaugment_and_hole() -> None:
    policy = CifarStrong(padding=0)
    uniform_BR = uniform(200, policy)
    uniform_BR[:, 2] = 0.9  # not mirrored
    coloured = AutoAugment()(IMAGE_3HW.expand(200, -1, -1, -1), uniform_BR[:, 3:8])
    assert torch.equal(CifarStrong(padding=0, cutout=0)(IMAGE_3HW.expand(200, -1, -1, -1), uniform_BR), coloured)
    uniform_BR[:, 4:6] = 0.95  # no gate opens, so what is black is the hole
    uniform_BR[:, 8:10] = torch.tensor([0.5, 0.25])
    holes = policy(torch.full((200, 3, 32, 32), 255, dtype=torch.uint8), uniform_BR) == 0
    assert holes[:, :, 8:24, 0:16].all() and holes.sum() == 200 * 3 * 256


def _moments(samples_NP: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, its squared standard error, variance, its squared standard error (μ₄ − σ⁴)/n, per pixel."""
    mean = samples_NP.mean(0)
    centred = (samples_NP - mean).square()
    variance = centred.mean(0)
    return mean, variance / len(samples_NP), variance, (centred.square().mean(0) - variance.square()) / len(samples_NP)


@pytest.mark.parametrize(("policy", "reference"), [(CifarWeak(), PIL_WEAK), (CifarStrong(), PIL_STRONG)], ids=["weak", "strong"])
def test_moments_equal_the_pillow_pipeline(policy: Policy, reference: Callable[[Image.Image], Tensor]) -> None:
    """Mean and variance of 10,000 pictures against 10,000 of the reference: each pixel within 5 standard errors of both.

    3,072 pixels and two moments: one beyond 5 by chance in less than 1 of 250 seeds. All pixels together: z has root mean square 1 for
    equal distributions; the pictures' own mean level and spread agree within 4 standard errors.
    """
    num = 10_000
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    picture = Image.fromarray(VECTORS["image32"])
    expected = torch.stack([reference(picture) for _ in range(num)]).flatten(1).float()
    chunks = uniform(num, policy, seed=2).split(100)
    got = torch.cat([policy(IMAGE_3HW.expand(len(chunk), -1, -1, -1), chunk) for chunk in chunks]).flatten(1).float()
    ours, theirs = _moments(got), _moments(expected)
    for value, error in ((0, 1), (2, 3)):
        z = (ours[value] - theirs[value]) / (ours[error] + theirs[error]).sqrt()
        assert z.abs().max() < 5, z.abs().max()
        assert z.square().mean().sqrt() < 2, z.square().mean().sqrt()
    level, spread = ((a - b, (a.var() + b.var()) / num) for a, b in ((got.mean(1), expected.mean(1)), (got.std(1), expected.std(1))))
    for difference, squared_error in (level, spread):
        assert difference.mean().abs() < 4 * squared_error.sqrt()


def test_identity_is_identity() -> None:
    assert Identity.draws == 0
    assert torch.equal(Identity()(IMAGE_3HW[None], torch.empty(1, 0)), IMAGE_3HW[None])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: CifarWeak(padding=-1), "padding=-1"),
        (lambda: CifarWeak(degrees=200.0), "degrees=200.0"),
        (lambda: CifarStrong(cutout=-2), "cutout=-2"),
        (lambda: DigitsWeak(shift=-1), "shift=-1"),
        (lambda: DigitsStrong(scale=1.0), "scale=1.0"),
    ],
)
def test_impossible_strengths_are_refused(make: Callable[[], Policy], named: str) -> None:
    with pytest.raises(UserError, match=f"{named}: expected"):
        make()
