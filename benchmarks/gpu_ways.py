"""The ways to take training steps that gpu.py compares: each is made once, and then called, a fit at a time, for the seconds of a step."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

import plain
import plain_views
from mdcs import config
from mdcs.build import Run, build
from mdcs.data import module as data_module
from mdcs.data.splits import Pictures, Splits
from mdcs.training.checkpoint import RunFolder
from mdcs.training.trainer import make_trainer
from mdcs.types import Classes


class Case(NamedTuple):
    title: str
    words: tuple[str, ...]
    side: int
    batch: int
    counts: list[int]
    warm_up: int  # steps of a fit
    steps: int
    larger: tuple[int, ...] = ()  # batches that are tried with everything but graphs
    grouped: bool = False


class Way(NamedTuple):
    """A fit with the switches; without any it has the plain layout, precision and place of pictures."""

    words: tuple[str, ...] = ()
    channels_last: bool = False
    on_device: bool = False

    def and_words(self, words: tuple[str, ...]) -> "Way":
        return self._replace(words=(*self.words, *words))


def now() -> float:
    """The clock, when the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(Callback):
    """Time between the ends of two steps: as many batches are fetched in it as are trained on."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.ends = (warm_up - 1, warm_up + steps - 1)
        self.steps = steps
        self.read: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, number: int) -> None:
        if number in self.ends:
            self.read.append(now())

    @property
    def seconds(self) -> float:
        first, last = self.read
        return (last - first) / self.steps


def random_splits(case: Case) -> Splits:
    """Pictures of random bytes in memory, with the case's number of them in each class."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(len(case.counts)).repeat_interleave(torch.tensor(case.counts))
    images = torch.randint(0, 256, (len(labels), 3, case.side, case.side), dtype=torch.uint8, generator=random)
    pictures = Pictures(images, labels, torch.arange(len(labels)), tuple(map(str, range(len(labels)))))
    return Splits(pictures, None, pictures, Classes.of(labels, tuple(map(str, range(len(case.counts))))), tuple(case.counts), ())


def prepared(case: Case, way: Way, splits: Splits, batch: int) -> Run:
    """The run of a way, as `mdcs train` builds it; the plain layout is put back where the way has it."""
    fixed = (f"data.batch_size={batch}", f"trainer.limit_train_batches={case.warm_up + case.steps}", "trainer.max_epochs=1")
    words = [*case.words, *fixed, "trainer.enable_progress_bar=false", *way.words]
    run = build(config.plain(config.compose("train", words)), splits.classes)
    run.splits = splits
    if not way.channels_last:
        run.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        run.net.backbone.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    return run


def fitting(case: Case, way: Way, splits: Splits, batch: int) -> Callable[[], float]:
    """One fit: seconds a step."""
    run = prepared(case, way, splits, batch)
    share = data_module.SHARE_OF_DEVICE if way.on_device else 0.0

    def fit() -> float:
        steps = min(case.steps, len(splits.train.labels) // batch - case.warm_up)
        clock = Clock(case.warm_up, steps)
        with tempfile.TemporaryDirectory() as place, mock.patch.object(data_module, "SHARE_OF_DEVICE", share):
            trainer = make_trainer(run.config, RunFolder(Path(place) / "run", run.net.num_experts, {}), False)
            trainer.callbacks.append(clock)  # type: ignore[attr-defined]
            trainer.fit(run.module, datamodule=run.data())
        return clock.seconds

    return fit


class Logits(nn.Module):
    """Our network, which loops over experts too, as the plain loss reads it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.net(images).logits.unbind(1))


def plain_way(case: Case, splits: Splits, views_given: bool, workers: int) -> Callable[[], float]:
    """Some steps the plain way: seconds a step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net: nn.Module = plain.ExpertResNet(3, len(case.counts))
    if "model=resnet32" not in case.words:
        net = Logits(prepared(case, Way(), splits, case.batch).net)
    net.to(device)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    counts_C = splits.classes.counts.to(device)
    pictures = splits.train.images.permute(0, 2, 3, 1).contiguous()  # type: ignore[union-attr]
    loader = plain.loader(pictures, splits.train.labels.tolist(), case.batch, workers)
    loader.dataset.views = plain_views.cifar() if case.side <= 32 else plain_views.imagenet()  # type: ignore[attr-defined]
    given = [part.to(device) for part in next(iter(loader))] if views_given else []

    def steps() -> float:
        batches: Iterable[Any] = itertools.repeat(given) if views_given else loader
        started = now()
        for number, (weak, strong, labels_B) in zip(range(case.warm_up + case.steps), batches, strict=False):
            if number == case.warm_up:
                started = now()
            images, labels_B = torch.cat([weak.to(device), strong.to(device)]), labels_B.to(device)
            optimiser.zero_grad()
            loss = plain.mdcs_loss(net(images), labels_B, counts_C, [-0.5, 1.0, 2.5], 1)
            loss.backward()
            optimiser.step()
            loss.item()
        return (now() - started) / case.steps

    return steps
