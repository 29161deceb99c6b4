"""Augment: keyed randomness, normalisation, memory layout, and the configurations."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.stats import chi2
from torch import Tensor

from mdcs.augment.policies import CifarStrong, CifarWeak, DigitsStrong, DigitsWeak, Identity
from mdcs.augment.views import Augment
from mdcs.errors import UserError
from mdcs.types import Batch, Part

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PICTURES_N3HW = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
CONF = Path(__file__).parents[1] / "conf" / "augment"


def cifar(seed: int = 0) -> Augment:
    return Augment(CifarWeak(), CifarStrong(), MEAN, STD, num_pictures=40, seed=seed)


def plain(downscale: int = 1) -> Augment:
    return Augment(Identity(), Identity(), MEAN, STD, num_pictures=40, downscale=downscale)


def batch_of(index: Tensor) -> Batch:
    return Batch(PICTURES_N3HW[index][None], labels=index % 10, index=index, meta=index[:, None].float())


def images(augment: Augment, index: Tensor, views: tuple[str, ...] = ("weak", "strong"), epoch: int = 1) -> Tensor:
    return augment(batch_of(index), views, 10, epoch).images


@pytest.mark.parametrize("make", [(CifarWeak, CifarStrong), (DigitsWeak, DigitsStrong)], ids=["cifar", "digits"])
def test_a_picture_looks_the_same_in_any_batch(make: tuple[type, type]) -> None:
    augment = Augment(make[0](), make[1](), MEAN, STD, num_pictures=40)
    whole = images(augment, torch.arange(40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(images(augment, order), whole[:, order])
    assert torch.equal(images(augment, torch.tensor([7, 7, 39])), whole[:, [7, 7, 39]])
    for i in range(0, 40, 13):
        assert torch.equal(images(augment, torch.tensor([i])), whole[:, i : i + 1])


def test_a_fresh_module_draws_the_same_and_epochs_may_come_in_any_order() -> None:
    index = torch.arange(40)
    augment = cifar()
    first, second = images(augment, index, epoch=1), images(augment, index, epoch=2)
    assert torch.equal(images(augment, index, epoch=1), first)
    assert torch.equal(images(cifar(), index, epoch=2), second)


def _shares_a_picture(a: Tensor, b: Tensor) -> bool:
    return bool((a == b).flatten(-3).all(-1).any())


def test_epochs_views_positions_and_seeds_differ() -> None:
    index = torch.arange(40)
    two = images(cifar(), index, ("weak", "weak"))
    assert not _shares_a_picture(two, images(cifar(), index, ("weak", "weak"), epoch=2))
    assert not _shares_a_picture(two, images(cifar(seed=1), index, ("weak", "weak")))
    assert not _shares_a_picture(two[0], two[1])
    assert torch.equal(two[0], images(cifar(), index, ("weak", "strong"))[0])  # the other view's name does not matter


def test_views_are_drawn_independently() -> None:
    """Moves of the two views along one axis, 9 × 9 equally likely pairs: chi-square."""
    num = 20_000
    augment = Augment(DigitsWeak(shift=4), DigitsWeak(shift=4), (0.0,) * 3, (1.0,) * 3, num_pictures=num)
    rows_say_where = torch.arange(9, dtype=torch.uint8)[:, None].expand(1, num, 3, 9, 9)
    batch = Batch(rows_say_where, torch.zeros(num, dtype=torch.int64), torch.arange(num))
    row_VB = (augment(batch, ("weak", "strong"), 2, 1).images[:, :, 0, 4, 4] * 255).round().long()
    counts = torch.bincount(row_VB[0] * 9 + row_VB[1], minlength=81).double()
    assert chi2.sf(float(((counts - num / 81) ** 2 / (num / 81)).sum()), 80) > 1e-4


def test_only_the_current_epoch_is_kept() -> None:
    augment = cifar()
    for epoch in range(3):
        images(augment, torch.arange(4), epoch=epoch)
    assert len(augment._tables) == 2


def test_normalisation_is_the_published_one() -> None:
    expected = (PICTURES_N3HW.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(images(plain(), torch.arange(40), ("weak",))[0], expected)
    assert torch.equal(plain().plain(PICTURES_N3HW), expected)


def test_a_black_hole_is_exactly_minus_mean_over_std() -> None:
    augment = Augment(Identity(), CifarStrong(padding=0, cutout=64), MEAN, STD, num_pictures=40)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.equal(images(augment, torch.arange(3), ("strong",)), black.view(3, 1, 1).expand(1, 3, 3, 32, 32))


def test_downscale_averages_after_the_policy() -> None:
    pooled = PICTURES_N3HW.float().view(40, 3, 16, 2, 16, 2).mean(dim=(3, 5)) / 255
    expected = (pooled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(plain(downscale=2).plain(PICTURES_N3HW), expected)
    torch.testing.assert_close(images(plain(downscale=2), torch.arange(40))[1], expected)
    small, large = (Augment(CifarWeak(), CifarStrong(), MEAN, STD, 40, downscale=d) for d in (2, 1))
    pooled_after = torch.nn.functional.avg_pool2d(images(large, torch.arange(40))[1], 2)
    torch.testing.assert_close(images(small, torch.arange(40))[1], pooled_after)


def test_flattened_views_are_channels_last_without_a_copy() -> None:
    got = images(cifar(), torch.arange(6))
    flat = got.flatten(0, 1)
    assert got.shape == (2, 6, 3, 32, 32) and flat.data_ptr() == got.data_ptr()
    assert flat.is_contiguous(memory_format=torch.channels_last)
    assert cifar().plain(PICTURES_N3HW).is_contiguous(memory_format=torch.channels_last)


def parts_of(index: Tensor, rows: int) -> list[Batch]:
    whole = batch_of(index)
    return [batch_of(own)._replace(part=Part(whole, number)) for number, own in enumerate(index.split(rows))]


@pytest.mark.parametrize("make", [(CifarWeak, CifarStrong), (DigitsWeak, DigitsStrong)], ids=["cifar", "digits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_made_at_once_are_those_made_one_by_one(make: tuple[type, type], dtype: torch.dtype) -> None:
    index = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:36]
    one_by_one, at_once = (Augment(make[0](), make[1](), MEAN, STD, num_pictures=40) for _ in range(2))
    for part in parts_of(index, 9):
        one = one_by_one(part._replace(part=None), ("weak", "strong"), 10, 1, dtype)
        other = at_once(part, ("weak", "strong"), 10, 1, dtype)
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
        assert one.images.stride() == other.images.stride() and other.images.flatten(0, 1).data_ptr() == other.images.data_ptr()
        assert other.index is part.index and other.meta is part.meta


def test_they_are_made_once() -> None:
    """Unless something else is asked for; what is changed in place does not change what is kept."""
    augment, made = cifar(), []
    augment.policies["weak"].register_forward_hook(lambda policy, given, got: made.append(len(got)))
    first, second = parts_of(torch.arange(40), 20)
    before = augment(first, ("weak",), 10, 1)
    augment(second, ("weak",), 10, 1)
    assert torch.equal(augment(first, ("weak",), 10, 1).images, before.images) and made == [40]
    assert not torch.equal(augment(first, ("weak",), 10, 2).images, before.images) and made == [40, 40]
    assert augment(second, ("weak",), 11, 2).targets.shape == (20, 11) and made == [40, 40, 40]
    augment(parts_of(torch.arange(40), 20)[0], ("weak",), 11, 2)
    assert made == [40] * 4


def test_mixing_leaves_what_is_kept_as_it_is() -> None:
    augment = Augment(CifarWeak(), CifarStrong(), MEAN, STD, num_pictures=40, mixup=0.4)
    part = parts_of(torch.arange(40), 20)[1]
    twice = [augment.mixing(augment(part, ("weak", "strong"), 10, 1), 1, 0) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*twice, strict=True))
    assert twice[0].images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_targets_index_and_meta() -> None:
    batch = batch_of(torch.tensor([13, 2, 38]))
    views = cifar()(batch, ("weak", "strong"), 10, 1)
    assert torch.equal(views.targets, torch.eye(10)[[3, 2, 8]]) and views.targets.dtype == torch.float32
    assert views.index is batch.index and views.meta is batch.meta
    assert cifar()(batch._replace(meta=None), ("weak",), 10, 1).meta is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_of_the_result_only(dtype: torch.dtype) -> None:
    """Casting the module with its network must not round the statistics or the policy."""
    index = torch.arange(40)
    got = cifar().to(dtype)(batch_of(index), ("weak", "strong"), 10, 1, dtype).images
    assert torch.equal(got, images(cifar(), index).to(dtype))
    assert plain().plain(PICTURES_N3HW, dtype).dtype == dtype


def test_each_view_may_have_its_own_stored_crop() -> None:
    index = torch.arange(5)
    stored = torch.stack([PICTURES_N3HW[:5], 255 - PICTURES_N3HW[:5]])
    got = plain()(batch_of(index)._replace(images=stored), ("weak", "strong"), 10, 1).images
    assert torch.equal(got, torch.stack([plain().plain(s) for s in stored]))


def test_nothing_is_stored_in_checkpoints_and_no_global_randomness_is_used() -> None:
    augment = cifar()
    assert augment.state_dict() == {}
    state = torch.get_rng_state()
    images(augment, torch.arange(40))
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_views_are_refused_by_name() -> None:
    cifar().check(("weak", "strong", "weak"))
    with pytest.raises(UserError, match="'medium': expected one of weak, strong"):
        cifar().check(("weak", "medium"))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"mean": (0.5,)}, "mean="),
        ({"std": (1.0, 0.0, 1.0)}, "std="),
        ({"num_pictures": 0}, "num_pictures=0"),
        ({"downscale": 0}, "downscale=0"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(wrong: dict[str, object], named: str) -> None:
    arguments = {"weak": Identity(), "strong": Identity(), "mean": MEAN, "std": STD, "num_pictures": 40} | wrong
    with pytest.raises(UserError, match=f"{named}.*expected"):
        Augment(**arguments)


@pytest.mark.parametrize("path", sorted(set(CONF.glob("*.yaml")) - {CONF / "auto.yaml"}), ids=lambda path: path.stem)
def test_configurations_make_finite_views(path: Path) -> None:
    augment = instantiate(OmegaConf.load(path), mean=MEAN, std=STD, num_pictures=40, seed=0, _convert_="all")
    size = 8 if path.stem == "digits" else 32
    batch = batch_of(torch.arange(40))._replace(images=PICTURES_N3HW[None, ..., :size, :size])
    got = augment(batch, ("weak", "strong"), 10, 1).images
    assert got.shape == (2, 40, 3, size, size) and got.isfinite().all()
    assert torch.equal(got[0], got[1]) == (path.stem == "none")
