"""Mixup and cutmix against timm's, and what a step draws."""

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from conftest import golden
from mdcs.augment.mix import Box, Mix, box_around, cutmix, mixup, smooth
from mdcs.build import build
from mdcs.config import compose, plain
from mdcs.errors import UserError
from mdcs.types import Views

VECTORS, DRAWS = golden("mixup.npz"), golden("mixup.json")["draws"]


def views_of(num_views: int = 1) -> Views:
    """The published pictures; further views are other multiples of them."""
    images = torch.from_numpy(VECTORS["x"])
    labels = torch.from_numpy(VECTORS["y"])
    stack = torch.stack([images * (v + 1) for v in range(num_views)])
    flat = stack.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return Views(flat.unflatten(0, stack.shape[:2]), torch.eye(10)[labels], torch.arange(6))


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: f"seed{draw['np_random_seed']}")
def test_golden(draw: dict) -> None:
    for num_views in (1, 2):
        views = views_of(num_views)
        views = views._replace(targets=smooth(views.targets, 0.1))
        mixed = cutmix(views, Box(*draw["bbox_yl_yh_xl_xh"])) if draw["use_cutmix"] else mixup(views, draw["lam_drawn"])
        name = f"seed{draw['np_random_seed']}"
        for v in range(num_views):
            torch.testing.assert_close(mixed.images[v], (v + 1) * torch.from_numpy(VECTORS[f"{name}.x"]), rtol=0, atol=2e-6)
        torch.testing.assert_close(mixed.targets, torch.from_numpy(VECTORS[f"{name}.t"]), rtol=0, atol=1e-6)
        assert mixed.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mixed.targets.sum(1), torch.ones(6))


def test_boxes() -> None:
    golden_box = next(draw for draw in DRAWS if draw["np_random_seed"] == 2)
    assert box_around(8, 7, 1 - golden_box["lam_drawn"], 16, 16) == Box(*golden_box["bbox_yl_yh_xl_xh"])
    assert box_around(5, 5, 0.25, 10, 10) == Box(3, 8, 3, 8)  # odd sides keep their length
    assert box_around(0, 9, 0.25, 10, 10) == Box(0, 3, 7, 10)  # clipped
    assert box_around(3, 3, 1.0, 8, 4) == Box(0, 7, 1, 4)
    assert box_around(3, 3, 0.0, 8, 4) == Box(3, 3, 3, 3)


def test_extreme_shares() -> None:
    one, none = mixup(views_of(), 1.0), mixup(views_of(), 0.0)
    torch.testing.assert_close(one.images, views_of().images)
    torch.testing.assert_close(none.images, views_of().images.flip(1))
    assert torch.equal(none.targets, views_of().targets.flip(0))
    whole = cutmix(views_of(), Box(0, 16, 0, 16))
    assert torch.equal(whole.images, views_of().images.flip(1)) and torch.equal(whole.targets, none.targets)
    assert torch.equal(cutmix(views_of(), Box(3, 3, 3, 3)).images, views_of().images)


def shares(mix: Mix, steps: int = 400) -> Tensor:
    """λ of each step, read off the first target; 1 where nothing was mixed."""
    views = Views(torch.zeros(1, 2, 3, 32, 32), torch.eye(2), torch.arange(2))
    return torch.stack([mix(views, 0, step).targets[0, 0] for step in range(steps)])


def test_a_step_draws_by_its_key_alone() -> None:
    def drawn(seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        mixed = Mix(mixup=0.8, cutmix=1.0, seed=seed)(views_of(2), epoch, step)
        return mixed.images, mixed.targets

    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = drawn(0, 3, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(0, 3, 7), strict=True))
    assert all(not torch.equal(first[1], drawn(*other)[1]) for other in ((1, 3, 7), (0, 4, 7), (0, 3, 8)))
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == np.random.get_state()[1].tolist()


def test_shares_have_the_beta_distribution() -> None:
    for alpha in (0.4, 1.0):
        lam = shares(Mix(mixup=alpha))
        assert abs(lam.mean() - 0.5) < 0.06
        assert abs(lam.var() - 1 / (4 * (2 * alpha + 1))) < 0.015
    assert abs(shares(Mix(cutmix=1.0)).mean() - 0.5) > 0.03  # clipped boxes are smaller


def test_probabilities() -> None:
    untouched = (shares(Mix(mixup=1.0, probability=0.3)) == 1).float().mean()
    assert abs(untouched - 0.7) < 0.07
    cut = (shares(Mix(mixup=1.0, cutmix=1.0, switch_probability=0.2)) * 1024).frac() == 0  # cutmix shares are whole pixels of 1024
    assert abs(cut.float().mean() - 0.2) < 0.06


def test_nothing_changes_unless_it_is_asked_for() -> None:
    views = views_of()
    for mix in (Mix(), Mix(mixup=0.8, probability=0.0)):
        assert mix(views, 0, 0) is views and not mix.mixes
    smoothed = Mix(label_smoothing=0.1)(views, 0, 0)
    assert smoothed.images is views.images
    torch.testing.assert_close(smoothed.targets, 0.9 * views.targets + 0.01)


def test_an_odd_batch_leaves_its_middle_picture_alone() -> None:
    views = views_of()
    odd = Views(views.images[:, :5].clone(), views.targets[:5], views.index[:5])
    mixed = mixup(odd, 0.3)
    torch.testing.assert_close(mixed.images[:, 2], views_of().images[:, 2])
    assert torch.equal(mixed.targets[2], views.targets[2])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mixup": -0.1}, "augment.mixup=-0.1"),
        ({"cutmix": -1.0}, "augment.cutmix=-1.0"),
        ({"probability": 1.1}, "augment.mix_probability=1.1"),
        ({"switch_probability": -0.1}, "augment.switch_probability=-0.1"),
        ({"label_smoothing": 1.0}, "augment.label_smoothing=1.0"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Mix(**arguments)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_a_training_step_mixes_what_the_network_and_the_loss_see() -> None:
    run = build(plain(compose("train", ["data=digits", "model=resnet8", "loss=balpoe", "augment=none", "augment.mixup=0.4"])))
    module, seen = run.module, []
    forward, net = module.loss.forward, module.net.forward

    def watched_loss(out: Any, views: Views, epoch: float) -> Any:
        seen[-1] += [views.images.clone(), views.targets, views.index]
        return forward(out, views, epoch)

    def watched_net(images: Tensor, meta: Any = None) -> Any:
        seen.append([images.clone()])
        return net(images, meta)

    module.loss.forward, module.net.forward = watched_loss, watched_net  # type: ignore[method-assign]
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False
    )
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", devices=1, limit_val_batches=0, num_sanity_val_steps=0, **quiet)
    trainer.fit(module, datamodule=run.data())
    train = run.splits.train
    for step, (given, images, targets, index) in enumerate(seen):
        assert torch.equal(given, images.flatten(0, 1))
        plain_views = Views(module.augment.plain(train.plain(index))[None], torch.eye(10)[train.labels[index]], index)
        expected = Mix(mixup=0.4)(plain_views, 0, step)
        assert torch.equal(targets, expected.targets) and torch.equal(images, expected.images)
    assert len(seen) == 2
