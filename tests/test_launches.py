"""How many kernels a training step starts, and that the processor never waits for the device within one."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from mdcs.build import build
from mdcs.config import compose, plain
from mdcs.training.checkpoint import RunFolder
from mdcs.training.trainer import make_trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
launches = importlib.import_module("launches")
sys.path.pop(0)


def number(parts: dict[str, Any]) -> int:
    return sum(sum(operations.launches.values()) for operations in parts.values())


def test_a_grouped_step_starts_at_most_400_kernels() -> None:
    """ResNet-32, K = 3; the published code starts 891."""
    grouped, loop = launches.step_of(True), launches.step_of(False)
    assert number(grouped) <= 400
    assert number(loop) <= 750
    assert not any(operations.waits for parts in (grouped, loop) for operations in parts.values())


def test_grouped_kernels_do_not_grow_with_the_number_of_experts() -> None:
    three, six = (launches.step_of(True, num_experts, 8)["network"].launches for num_experts in (3, 6))
    assert three == six


def test_the_counter_sees_what_waits() -> None:
    """Otherwise the tests here could not fail."""
    values, chosen = torch.arange(4.0), torch.tensor([True, False, True, True])
    for wait in (lambda: values.sum().item(), lambda: values[chosen], lambda: values.nonzero(), lambda: bool(values.any())):
        with launches.Operations() as operations:
            wait()
        assert operations.waits
    with launches.Operations() as operations:
        torch.empty(3).view(3, 1).detach()
    assert not operations.launches


class Watch(Callback):
    """Counts within each step: from the batch's arrival to the end of the optimiser's update, meters included."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps.append(launches.Operations())
        self.steps[-1].__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps[-1].__exit__(None, None, None)


def fitted(words: list[str], folder: Path, watch: Callback) -> pl.Trainer:
    cfg = plain(compose("train", ["trainer.max_epochs=1", "trainer.enable_progress_bar=false", *words]))
    run = build(cfg)
    trainer = make_trainer(run.config, RunFolder(folder, run.net.num_experts, {}), False)
    trainer.callbacks.insert(0, watch)
    trainer.fit(run.module, datamodule=run.data())
    return trainer


@pytest.mark.parametrize("loss", ["mdcs", "ce"])
def test_nothing_in_a_training_step_waits_for_the_device(loss: str, tmp_path: Path) -> None:
    """Views, network, loss, meters, backward and optimiser of the default run."""
    watch = Watch()
    fitted([f"loss={loss}"], tmp_path / "run", watch)
    assert len(watch.steps) > 5
    assert not any(step.waits for step in watch.steps), watch.steps[0].waits
    assert sum(watch.steps[-1].launches.values()) > 100


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_in_a_training_step_waits_for_the_gpu(tmp_path: Path) -> None:
    class Strict(Callback):
        """The first two steps warm up caches."""

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if trainer.global_step >= 2 else "default")

        def on_train_batch_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    trainer = fitted(["trainer.accelerator=gpu"], tmp_path / "run", Strict())
    assert trainer.global_step > 2
