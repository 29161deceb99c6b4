"""RandAugment, its interpolation and the colour jitter against Pillow and the golden vectors, and every choice against its frequency."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from conftest import GOLDEN
from mdcs.augment import ops, resample
from mdcs.augment.policies import ImageNetStrong, ImageNetWeak
from mdcs.augment.randaugment import FILL, NAMES, PLACES, RandAugment
from mdcs.errors import UserError
from mdcs.types import Policy

VECTORS = np.load(GOLDEN / "randaugment.npz")
META = json.loads((GOLDEN / "randaugment.json").read_text())
PUBLISHED = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "Rotate": "rotate",
    "PosterizeTpu": "posterize",
    "Solarize": "solarize",
    "SolarizeAdd": "solarize_add",
    "Color": "color",
    "Contrast": "contrast",
    "Brightness": "brightness",
    "Sharpness": "sharpness",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
}
PICTURE_3HW = torch.from_numpy(VECTORS["image64x48"]).permute(2, 0, 1).contiguous()
OBLONG_HW3 = np.random.default_rng(0).integers(0, 256, (17, 40, 3), dtype=np.uint8)


def golden(name: str) -> Tensor:
    """(3, H, W); a picture that is stored under another name is found there."""
    return torch.from_numpy(VECTORS[META["alias"].get(name, name)]).permute(2, 0, 1)


def chw(picture: Image.Image | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def assert_close(got: Tensor, expected: Tensor, fraction: float = 0.0) -> None:
    """Equal here. Where another compiler contracts a·b + c, a place exactly between two pixels may be decided otherwise."""
    assert got.dtype == torch.uint8 and got.shape == expected.shape
    assert (got != expected).float().mean() <= fraction


def chosen(rows: list[tuple[int, float, float, bool]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Operation, level, sign, cubic of one operation each, as `apply_chosen` wants them."""
    operation, level, sign, cubic = (torch.tensor(column)[:, None] for column in zip(*rows, strict=True))
    return operation, level.double(), sign.double(), cubic


def uniform(rows: int, policy: Policy, seed: int = 0) -> Tensor:
    return torch.rand(rows, policy.draws, generator=torch.Generator().manual_seed(seed))


def test_the_operations_are_the_published_ones() -> None:
    assert list(PUBLISHED) == META["ops"] and sorted(PUBLISHED.values()) == sorted(NAMES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_operation_equals_the_golden_pictures(name: str) -> None:
    """Both signs and interpolations in one batch, beside another operation that must not matter."""
    number = NAMES.index(PUBLISHED[name])
    cases = [(sign, cubic) for sign in (1.0, -1.0) for cubic in (False, True)]
    rows = [(number, 10.0, sign, cubic) for sign, cubic in cases] + [((number + 1) % 15, 10.0, 1.0, False)]
    got = RandAugment(num_ops=1).apply_chosen(PICTURE_3HW.expand(5, -1, -1, -1), *chosen(rows))
    words = [("plus" if sign > 0 else "minus", "bicubic" if cubic else "bilinear") for sign, cubic in cases]
    assert_close(got[:4], torch.stack([golden(f"randaug/{name}/{sign}/{kind}") for sign, kind in words]), 1e-3)


def test_sequence_equals_the_golden_one_for_the_published_draws() -> None:
    """The published order of calls of both generators gives the choices; the pictures are made in one batch."""
    random.seed(11)
    np.random.seed(11)
    choices = []
    for _ in range(6):
        picture = []
        for name in np.random.choice(META["ops"], 2):
            number, level, sign, cubic = NAMES.index(PUBLISHED[name]), 10.0, 1.0, False
            if random.random() > 0.5:
                picture.append((len(NAMES), level, sign, cubic))
                continue
            level = min(max(random.gauss(10, 0.5), 0.0), 10.0)
            if PUBLISHED[name] in PLACES:
                sign = -1.0 if random.random() > 0.5 else 1.0
                cubic = random.choice((False, True))
            picture.append((number, level, sign, cubic))
        choices.append(picture)
    steps = [chosen([picture[step] for picture in choices]) for step in (0, 1)]
    got = RandAugment().apply_chosen(PICTURE_3HW.expand(6, -1, -1, -1), *(torch.cat(pair, dim=1) for pair in zip(*steps, strict=True)))
    expected = torch.from_numpy(VECTORS["randaug/seed11_sequence"]).permute(0, 3, 1, 2)
    assert (expected != PICTURE_3HW).flatten(1).any(1).sum() >= 4  # most of them are changed at all
    assert_close(got, expected, 1e-3)


@pytest.mark.parametrize(
    "pixels", [VECTORS["image64x48"], OBLONG_HW3, OBLONG_HW3[:3, :5], OBLONG_HW3[:1, :1]], ids=["photograph", "oblong", "tiny", "pixel"]
)
@pytest.mark.parametrize("cubic", [False, True])
def test_interpolation_equals_pillow(pixels: np.ndarray, cubic: bool) -> None:
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels)
    kind = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    numbers = np.concatenate([np.linspace(-30, 30, 21), [0, 90, 180, 270, 123.4]])
    values = torch.from_numpy(numbers)
    batch = chw(pixels).expand(len(numbers), -1, -1, -1)
    turned = torch.stack([chw(picture.rotate(degrees, kind, fillcolor=FILL)) for degrees in numbers.tolist()])
    # Pillow turns by multiples of 90° without interpolation, which those of square pictures do not need
    assert_close(resample.transform(batch, resample.rotation(values, height, width), cubic, FILL), turned, 1e-3 + 0.02 * (height < 4))

    def affine(matrix: tuple[float, ...]) -> Tensor:
        return chw(picture.transform(picture.size, Image.Transform.AFFINE, matrix, kind, fillcolor=FILL))

    values = values / 100
    for matrices, along, rows in (
        (resample.shear_x(values), "x", [(1, m, 0, 0, 1, 0) for m in values.tolist()]),
        (resample.shear_y(values), "y", [(1, 0, 0, m, 1, 0) for m in values.tolist()]),
        (resample.translation(values * width, 0 * values), "x", [(1, 0, m * width, 0, 1, 0) for m in values.tolist()]),
        (resample.translation(0 * values, values * height), "y", [(1, 0, 0, 0, 1, m * height) for m in values.tolist()]),
    ):
        got = resample.transform(batch, matrices, cubic, FILL)
        assert_close(got, torch.stack([affine(row) for row in rows]), 1e-3)
        assert torch.equal(resample.transform(batch, matrices, cubic, FILL, along), got)


def test_solarize_add() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    image = levels.view(1, 1, 16, 16).expand(2, 3, -1, -1)
    added = ops.look_up(image, ops.solarize_add_table(image, torch.tensor([110, 200])))[:, 0].flatten(1).int()
    expected = [[min(255, g + add) if g < 128 else g for g in range(256)] for add in (110, 200)]
    assert added.tolist() == expected


def test_choices_have_the_stated_frequencies() -> None:
    policy = RandAugment()
    operation, level, sign, cubic = policy.choose(uniform(20_000, policy))
    assert abs((operation == len(NAMES)).double().mean() - 0.5) < 0.015
    counts = torch.bincount(operation[operation < 15], minlength=15).double()
    assert len(counts) == 15 and ((counts / counts.sum() - 1 / 15).abs() < 0.008).all()
    assert operation.unique().tolist() == list(range(16))
    assert abs((level == 10).double().mean() - 0.5) < 0.015 and level.max() == 10
    assert abs((level < 9.5).double().mean() - 0.158655) < 0.01 and abs((level < 9).double().mean() - 0.02275) < 0.005
    assert abs(sign.mean()) < 0.02 and sign.unique().tolist() == [-1, 1] and abs(cubic.double().mean() - 0.5) < 0.015
    first, second = (operation[:, step] for step in (0, 1))
    both = ((first == second) & (first < 15)).double().sum() / ((first < 15) & (second < 15)).double().sum()
    assert abs(both - 1 / 15) < 0.015  # with replacement, and independently


def test_magnitudes_at_the_ends() -> None:
    uniform_BR = torch.full((1, 5), 0.3)
    assert RandAugment(num_ops=1, magnitude_std=0).choose(uniform_BR)[1].tolist() == [[10.0]]
    uniform_BR[0, 2] = 0.0
    assert RandAugment(num_ops=1, magnitude_std=0).choose(uniform_BR)[1].tolist() == [[10.0]]
    assert 0 <= RandAugment(num_ops=1).choose(uniform_BR)[1].item() < 8
    assert (RandAugment(probability=0).choose(uniform(100, RandAugment()))[0] == len(NAMES)).all()


@pytest.mark.parametrize("policy", [RandAugment(), ImageNetWeak(), ImageNetStrong()], ids=lambda policy: type(policy).__name__)
def test_a_picture_does_not_depend_on_the_rest_of_the_batch(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (40, 3, 20, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, numbers = images.clone(), uniform(40, policy)
    together = policy(images, numbers)
    assert torch.equal(images, before) and (together != images).flatten(1).any(1).float().mean() > 0.5
    monkeypatch.setattr(ops, "rows_at_a_time", lambda images: 7)  # chunks do not matter either
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(policy(images[order], numbers[order]), together[order])
    assert policy(images[:0], numbers[:0]).shape == (0, 3, 20, 31)


ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@pytest.mark.parametrize("pixels", [VECTORS["image64x48"], OBLONG_HW3], ids=["photograph", "oblong"])
def test_jitter_equals_pillow_in_every_order(pixels: np.ndarray) -> None:
    policy = ImageNetWeak()
    numbers = uniform(60, policy)
    numbers[:, 0] = 0.9  # not mirrored
    numbers[:, 4] = (torch.arange(60) % 6 + 0.5) / 6
    got = policy(chw(pixels).expand(60, -1, -1, -1), numbers)
    orders = set()
    for row, (_, *factors, _) in enumerate(numbers.tolist()):
        matches = []
        for order in [(0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0)]:
            picture = Image.fromarray(pixels)
            for step in order:
                picture = ENHANCERS[step](picture).enhance(float(np.float32(1 + (2 * np.float32(factors[step]) - 1) * np.float32(0.4))))
            if torch.equal(chw(picture), got[row]):
                matches.append(order)
        assert matches, row
        orders.add((row % 6, matches[0]) if len(matches) == 1 else (-1, ()))
    assert len({order for _, order in orders if order}) == 6 == len({number for number, order in orders if order})


def test_weak_mirrors_half_of_the_pictures() -> None:
    policy = ImageNetWeak(brightness=0, contrast=0, saturation=0)
    mirrored = (policy(PICTURE_3HW.expand(400, -1, -1, -1), uniform(400, policy)) == PICTURE_3HW.flip(2)).flatten(1).all(1)
    assert 160 < mirrored.sum() < 240
    assert torch.equal(policy(PICTURE_3HW[None], torch.full((1, 5), 0.7)), PICTURE_3HW[None])


def test_strong_is_weak_then_randaugment() -> None:
    policy, weak, strong = ImageNetStrong(), ImageNetWeak(), RandAugment()
    images, numbers = PICTURE_3HW.expand(30, -1, -1, -1), uniform(30, policy)
    assert policy.draws == 15
    assert torch.equal(policy(images, numbers), strong(weak(images, numbers[:, :5]), numbers[:, 5:]))


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"^magnitude=11: expected 0 to 10; change augment\.weak\.magnitude or augment\.strong"):
        RandAugment(magnitude=11)
    with pytest.raises(UserError, match=r"^probability=-0\.1: expected 0 to 1"):
        ImageNetStrong(probability=-0.1)
    with pytest.raises(UserError, match=r"^brightness=1\.5: expected 0 to 1"):
        ImageNetWeak(brightness=1.5)
