"""Averaged weights: their arithmetic, and as teacher and answer of a training run."""

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from mdcs.build import build
from mdcs.config import compose, plain
from mdcs.errors import UserError
from mdcs.losses.mdcs import MDCS
from mdcs.models.expert_net import ExpertNet
from mdcs.training.ema import AveragedNet
from mdcs.training.module import LongTailModule

QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False)
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


def module_of(*words: str, teacher: Literal["self", "ema"] = "self", **ema: Any) -> tuple[LongTailModule, Any]:
    """A module on digits-LT with averaged weights, and its data."""
    run = build(plain(compose("train", ["data=digits", "model=resnet8", "model.num_experts=2", "data.val_fraction=0.3", *words])))
    parts = run.module
    loss = MDCS(run.classes, 2, teacher=teacher, warmup_epochs=0) if teacher == "ema" else parts.loss
    made = LongTailModule(run.net, loss, parts.augment, run.classes, parts.optimiser, parts.schedule, 0, **ema)
    return made, run.data()


def fit(module: LongTailModule, data: Any, epochs: int, checkpoint: Path | None = None, *callbacks: pl.Callback) -> pl.Trainer:
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **QUIET, **settings)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def net_of() -> ExpertNet:
    return module_of()[0].net


def test_it_is_the_plain_mean_and_then_the_exponential_one() -> None:
    net = net_of()
    average = AveragedNet(net, decay=0.75)
    name, weight = next(iter(net.named_parameters()))
    history: list[Tensor] = []
    for step in range(8):
        with torch.no_grad():
            weight.fill_(float(step + 3))
        history.append(weight.detach().clone())
        average.update(net, step)
        mine = average.net.get_parameter(name)
        if step < 4:
            torch.testing.assert_close(mine, torch.stack(history).mean(0))
            last = mine.clone()
        else:
            last = 0.75 * last + 0.25 * weight.detach()
            torch.testing.assert_close(mine, last)


def test_it_follows_buffers_and_never_learns_or_updates_itself() -> None:
    net = net_of()
    average = AveragedNet(net, decay=0.5)
    net.train()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net(images)
    average.update(net, 0)
    assert all(torch.equal(a, b) for a, b in zip(average.net.state_dict().values(), net.state_dict().values(), strict=True))
    average.train()  # as Lightning does at the start
    before = copy.deepcopy(average.state_dict())
    assert not average(images).logits.requires_grad and not any(weight.requires_grad for weight in average.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), average.state_dict().values(), strict=True))
    torch.testing.assert_close(average(images).logits, net.eval()(images).logits)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, data = module_of(teacher="ema", ema_decay=0.9)
    fit(whole, data, 3)
    first, data = module_of(teacher="ema", ema_decay=0.9)
    fit(first, data, 2).save_checkpoint(tmp_path / "last.ckpt")
    second, data = module_of(teacher="ema", ema_decay=0.9)
    fit(second, data, 3, tmp_path / "last.ckpt")
    ours, theirs = second.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys() and any(name.startswith("ema.net.") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(theirs[f"ema.net.{name}"], value) for name, value in whole.net.named_parameters())


class Given(pl.Callback):
    """Notes what the loss was given as the teacher's logits, and compares it with the averaged weights' own answer."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        views = pl_module.augment(batch, ("weak", "strong"), 10, pl_module.current_epoch)
        self.expected = pl_module.ema(views.images[0]).logits

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.equal: list[bool] = []
        forward = pl_module.loss.forward

        def watched(out: Any, views: Any, epoch: float, ema_logits: Tensor) -> Any:
            self.equal.append(torch.equal(ema_logits, self.expected))
            return forward(out, views, epoch, ema_logits)

        pl_module.loss.forward = watched


def test_the_teacher_is_the_average_of_the_steps_before() -> None:
    module, data = module_of(teacher="ema", ema_decay=0.9)
    given = Given()
    fit(module, data, 1, None, given)
    assert len(given.equal) > 5 and all(given.equal)


def test_validation_with_averaged_weights() -> None:
    """With a decay so near to 1 that the average is the mean of all steps, its accuracy is that of the network with those weights."""
    module, data = module_of(ema_decay=0.99999, ema_evaluate=True)
    fit(module, data, 2)
    pictures = data.splits.val
    assert module.ema is not None
    for net, same in ((module.ema.net, True), (module.net, False)):
        answers = net.eval()(module.augment.plain(pictures.plain(torch.arange(len(pictures.labels))))).logits.mean(1).argmax(-1)
        assert ((answers == pictures.labels).float().mean().item() == pytest.approx(module.row["val/acc"])) == same


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match=r"loss.teacher=ema needs averaged weights: set optim.ema_decay"):
        module_of(teacher="ema")
    with pytest.raises(UserError, match=r"optim.ema_evaluate=true needs averaged weights"):
        module_of(ema_evaluate=True)
    with pytest.raises(UserError, match=r"optim.ema_decay=1.0: expected a number in \[0, 1\)"):
        module_of(ema_decay=1.0)
    with pytest.raises(UserError, match=r"confident_only=true with augment.mixup"):
        module_of("augment.mixup=0.4")
    module_of("augment.mixup=0.4", "loss.confident_only=false")
    module_of("augment.mixup=0.4", "loss=balpoe")
