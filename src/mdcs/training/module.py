"""One LightningModule for all methods: batch -> views -> network -> loss. What differs between methods is in the parts it is given."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from mdcs.augment.views import Augment
from mdcs.data.module import EpochOrder
from mdcs.errors import UserError
from mdcs.models.expert_net import ExpertNet
from mdcs.randomness import key
from mdcs.training.ema import AveragedNet
from mdcs.training.meters import EpochMeans, GroupAccuracy, reset_and_read
from mdcs.training.sam import SAM
from mdcs.training.schedule import Schedule
from mdcs.types import Batch, Classes, Loss, Output, Views

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")  # of torch.compile
FUSED = (torch.optim.SGD, torch.optim.Adam)  # and what is derived from them, AdamW and SAM


class LongTailModule(pl.LightningModule):
    """Trains `net` with `loss` on the views that `augment` makes. `row` holds the figures of the last epoch, for metrics.csv.

    `ema_decay` keeps averaged weights beside those that are trained; `ema_evaluate` validates (and a run predicts) with them.
    `compile` names a mode of torch.compile for the network's training pass: it takes a minute or more at the first step, and another for
    an epoch's last, smaller batch. "reduce-overhead" puts forward and backward into CUDA graphs. Not worth it on CPUs.
    """

    def __init__(
        self,
        net: ExpertNet,
        loss: Loss,
        augment: Augment,
        classes: Classes,
        optimiser: Callable[[ExpertNet], Optimizer],
        schedule: Schedule,
        seed: int,
        ema_decay: float | None = None,
        ema_evaluate: bool = False,
        compile: str | None = None,
    ) -> None:
        super().__init__()
        if compile not in (None, *COMPILE_MODES):
            raise UserError(f"model.compile={compile}: expected null, {', '.join(COMPILE_MODES[:-1])} or {COMPILE_MODES[-1]}")
        self.ema_teacher = getattr(loss, "ema_teacher", False)
        if ema_decay is None and (self.ema_teacher or ema_evaluate):
            asking = "loss.teacher=ema" if self.ema_teacher else "optim.ema_evaluate=true"
            raise UserError(f"{asking} needs averaged weights: set optim.ema_decay, for example 0.999")
        if augment.mixing.mixes and getattr(loss, "confident_only", False):
            raise UserError(
                "loss.confident_only=true with augment.mixup or augment.cutmix: a mixed picture has no one class to be right about; "
                "set loss.confident_only=false"
            )
        self.ema = None if ema_decay is None else AveragedNet(net, ema_decay)
        self.ema_evaluate = ema_evaluate
        self.net = net
        # A function beside the module: the network's own names, and its evaluation, stay as they are.
        self.compiled = None if compile is None else torch.compile(net.forward, mode=compile, dynamic=False)
        self.loss = loss
        self.augment = augment
        self.num_classes = len(classes)
        self.optimiser = optimiser
        self.schedule = schedule
        self.seed = seed
        self.means = EpochMeans(classes, net.num_experts)
        self.accuracy = GroupAccuracy(classes, net.num_experts)
        self.row: dict[str, float] = {}
        self.epoch_started = 0.0
        self.validation_started = 0.0

    @property
    def dtype_of_net(self) -> torch.dtype:
        """float32 unless trainer.precision says -true."""
        return next(self.net.parameters()).dtype

    @property
    def order(self) -> EpochOrder:
        """How the training pictures are spread over steps and ranks."""
        loader = self.trainer.train_dataloader
        assert loader is not None and isinstance(loader.sampler, EpochOrder)
        return loader.sampler

    def configure_optimizers(self) -> Optimizer:
        optimiser = self.optimiser(self.net)
        if isinstance(optimiser, SAM) and self.trainer.accumulate_grad_batches > 1:
            raise UserError("trainer.accumulate_grad_batches cannot be combined with SAM, whose second gradient is of one batch")
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
        if isinstance(optimiser, FUSED) and self.device.type in ("cpu", "cuda"):
            use_fused_step(optimiser)
        return optimiser

    def on_train_start(self) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            if half_on_cpu(group["params"]) and group.get("fused"):  # from the checkpoint of a GPU
                group["fused"] = None

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        if self.ema is not None:
            self.ema.update(self.net, self.trainer.global_step)

    def on_train_epoch_start(self) -> None:
        factor = self.schedule.factor(self.current_epoch + 1)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.row = {"epoch": self.current_epoch + 1, "lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        self.epoch_started = time.perf_counter()

    def training_step(self, batch: Batch, step: int) -> Tensor:
        # Dropout and stochastic depth draw from the global generators: their state is a function of the step, too.
        seed_generators(key(self.seed, "step", self.current_epoch, step, self.global_rank), self.device)
        exact = torch.autocast(self.device.type, enabled=False)
        with exact:
            views: Views = self.augment(batch, self.loss.views, self.num_classes, self.current_epoch, self.dtype_of_net)
            views = self.augment.mixing(views, self.current_epoch, step)
        num_views, rows = views.images.shape[:2]
        meta_NM = None if views.meta is None else views.meta.repeat(num_views, 1)
        out = (self.compiled or self.net)(views.images.flatten(0, 1), meta_NM)
        out = Output(*(x.unflatten(0, (num_views, rows)) for x in out))
        taught = {"ema_logits": self.ema(views.images[0], views.meta).logits} if self.ema is not None and self.ema_teacher else {}
        with exact:
            parts = self.loss(out, views, self.current_epoch + 1, **taught)
            if not getattr(self.trainer.optimizers[0], "perturbed", False):  # SAM's second pass over the same pictures
                self.means.update(parts, out.logits.detach(), views.targets.argmax(-1))
        # The gradients of ranks and of accumulated micro-batches are plainly averaged: weigh each by its rows, so that the result is the
        # mean over all pictures of the optimiser step.
        micro = self.trainer.accumulate_grad_batches
        if self.trainer.world_size * micro == 1:
            return parts["loss"]
        first = step - step % micro
        beyond = min(first + micro, int(self.trainer.num_training_batches))
        together = sum(self.order.rows(other) for other in range(first, beyond))
        return parts["loss"] * share_weight(rows, self.trainer.world_size * micro, together)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in [name for name in checkpoint["callbacks"] if name.startswith("Timer")]:
            del checkpoint["callbacks"][name]  # trainer.max_time counts each piece of a resumed run by itself

    def on_train_epoch_end(self) -> None:
        means = reset_and_read(self.means)
        if not math.isfinite(means["train/loss"]):
            raise UserError(
                f"the loss of epoch {self.current_epoch + 1} is {means['train/loss']}: lower optim.lr, or set optim.warmup_epochs"
            )
        means["images_per_second"] = means.pop("pictures") / (time.perf_counter() - self.epoch_started)
        self.row |= means

    def validation_step(self, batch: Batch, step: int) -> None:
        images = self.augment.plain(batch.images[0], self.dtype_of_net)
        net = self.ema if self.ema is not None and self.ema_evaluate else self.net
        self.accuracy.update(net(images, batch.meta).logits, batch.labels)

    def on_train_end(self) -> None:
        self.augment.forget()

    def on_validation_epoch_start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the epoch's last steps are not of validation
        self.validation_started = time.perf_counter()

    def on_validation_epoch_end(self) -> None:
        self.row |= reset_and_read(self.accuracy)
        self.epoch_started += time.perf_counter() - self.validation_started  # images_per_second counts training alone


def use_fused_step(optimiser: Optimizer) -> None:
    """Let all weights be updated in one pass, unless the configuration chose another way.

    Set here and not by the constructor's argument, for which Lightning would refuse trainer.gradient_clip_val in mixed precision.
    Weights in half precision on a CPU keep the usual step: the one pass of torch 2.11 updates them wrongly.
    """
    for group in optimiser.param_groups:
        if half_on_cpu(group["params"]):
            continue
        if not any(group.get(name) for name in ("foreach", "differentiable", "maximize", "capturable")) and group["fused"] is None:
            group["fused"] = True


def half_on_cpu(weights: Iterable[Tensor]) -> bool:
    """Whether some of them are in bfloat16 or float16 on a CPU."""
    return any(weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16) for weight in weights)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`.

    torch.manual_seed would do so for every kind of accelerator, and where one is absent it stores the call with the text of the stack in a
    list that only grows: a millisecond and ten kilobytes a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def share_weight(rows: int, shares: int, together: int) -> float:
    """What the loss of one of `shares` parts of a batch is multiplied by, so that the plain mean over the parts is the mean over pictures.

    `rows`: pictures of this part; `together`: of all parts.
    """
    return rows * shares / together
