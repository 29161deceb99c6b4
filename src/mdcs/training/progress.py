"""What a person at a terminal sees while a run trains: a bar with the loss and its parts."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mdcs.training.meters import in_words
from mdcs.training.module import LongTailModule

SECONDS_BETWEEN_LOOKS = 0.5  # each look at the sums waits for the device once


class RunProgress(ProgressBar):
    """One bar over all epochs of the run."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.looked = 0.0
        self.validation: dict[str, float] = {}  # of the last epoch that was validated

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first."""
        self.stop()
        self.on_train_start = self.on_train_batch_end = lambda *_, **__: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if sys.stderr.isatty():
            from rich.console import Console

            columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(24), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=trainer.max_epochs, completed=trainer.current_epoch)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.bar is None or time.perf_counter() - self.looked < SECONDS_BETWEEN_LOOKS:
            return
        self.looked = time.perf_counter()
        assert isinstance(pl_module, LongTailModule)
        share = (trainer.fit_loop.epoch_loop.batch_idx + 1) / max(1, int(trainer.num_training_batches))
        text = in_words(pl_module.means.local() | self.validation)
        self.bar.update(self.task, completed=trainer.current_epoch + share, description=text)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LongTailModule)
        self.validation = {name: value for name, value in pl_module.row.items() if name.startswith("val/")}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
