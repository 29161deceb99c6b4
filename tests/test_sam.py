"""Sharpness-aware SGD: the published two steps, and within Lightning's automatic optimisation."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from conftest import golden
from mdcs.build import Run, build
from mdcs.config import compose, plain
from mdcs.errors import UserError
from mdcs.training.sam import SAM

VECTORS = {name.removeprefix("sam."): torch.from_numpy(value) for name, value in golden("teacher_losses.npz").items() if name[:4] == "sam."}
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False)


def test_golden_two_steps() -> None:
    weight, bias = VECTORS["w0"].clone().requires_grad_(), VECTORS["b0"].clone().requires_grad_()
    sam = SAM([weight, bias], lr=0.1, momentum=0.9, weight_decay=2e-4, rho=0.8)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        sam.zero_grad()
        seen.append(weight.detach().clone())
        loss = (VECTORS["X"] @ weight.T + bias - VECTORS["Y"]).square().mean()
        loss.backward()
        return loss

    for step in (1, 2):
        before = (VECTORS["X"] @ weight.T + bias - VECTORS["Y"]).square().mean()
        assert torch.equal(sam.step(closure), before)
        torch.testing.assert_close(seen[-1], VECTORS[f"perturbed_w{step}"], rtol=0, atol=1e-5)
        torch.testing.assert_close(weight.detach(), VECTORS[f"w{step}"], rtol=0, atol=1e-5)
        torch.testing.assert_close(bias.detach(), VECTORS[f"b{step}"], rtol=0, atol=1e-5)
    assert len(seen) == 4 and not sam.perturbed


def test_without_a_radius_it_is_sgd() -> None:
    ours, theirs = (torch.linspace(-1, 1, 5).requires_grad_() for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
    pairs = ((ours, SAM([ours], rho=0.0, **settings)), (theirs, torch.optim.SGD([theirs], **settings)))
    for _ in range(3):
        for weight, optimiser in pairs:

            def closure(weight: Tensor = weight) -> Tensor:
                weight.grad = None
                loss = weight.exp().sum()
                loss.backward()
                return loss

            optimiser.step(closure)
    assert torch.equal(ours, theirs)


def test_the_weights_come_back_if_the_second_pass_fails() -> None:
    weight = torch.tensor([0.1, 0.7], requires_grad=True)
    sam = SAM([weight], rho=0.3)

    def closure() -> Tensor:
        if sam.perturbed:
            raise KeyboardInterrupt
        loss = weight.square().sum()
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert torch.equal(weight, torch.tensor([0.1, 0.7])) and not sam.perturbed


def test_what_it_cannot_do_is_refused() -> None:
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(UserError, match=r"optim.rho=-1"):
        SAM([weight], rho=-1.0)
    with pytest.raises(UserError, match=r"16-mixed does not give; use bf16-mixed or 32-true"):
        SAM([weight]).step()


def fit(*words: str, **trainer: Any) -> Run:
    run = build(plain(compose("train", ["data=digits", "model=resnet8", *words])))
    settings: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    pl.Trainer(**QUIET, **settings | trainer).fit(run.module, datamodule=run.data())
    return run


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_training_counts_each_picture_once_and_batch_norm_twice() -> None:
    sgd = fit("optim=sgd", "optim.lr=1e-6")
    sam = fit("optim=sgd_sam", "optim.lr=1e-6", "optim.rho=0.5", gradient_clip_val=1.0)
    tracked = [
        next(int(value) for name, value in run.net.state_dict().items() if name.endswith("num_batches_tracked")) for run in (sgd, sam)
    ]
    assert tracked == [10, 20]
    # The first pass of each step sees the weights of plain SGD at this learning rate, the second quite other ones.
    assert sam.module.row["train/loss"] == pytest.approx(sgd.module.row["train/loss"], rel=1e-3)
    moved = [not torch.equal(a, b) for a, b in zip(sgd.net.parameters(), sam.net.parameters(), strict=True)]
    assert any(moved) and all(weight.isfinite().all() for weight in sam.net.parameters())


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_accumulated_batches_are_refused() -> None:
    with pytest.raises(UserError, match=r"accumulate_grad_batches cannot be combined with SAM"):
        fit("optim=sgd_sam", accumulate_grad_batches=2)
