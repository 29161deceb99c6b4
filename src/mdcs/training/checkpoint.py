"""What a run leaves on disk while it trains: one row of metrics.csv and one checkpoint an epoch, so written that a kill loses neither."""

import csv
import logging
import os
import pickle
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from mdcs.durable import write_durably
from mdcs.errors import UserError
from mdcs.training.meters import columns, in_words
from mdcs.training.module import LongTailModule

if TYPE_CHECKING:
    from mdcs.training.loggers import RunLogger

LINES_ON_SCREEN = 10

log = logging.getLogger("mdcs")


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's own save goes through the temporary folder, where a rename can become a copy that a kill cuts short. This one cannot."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


class RunFolder(Checkpoint):
    """At the end of each epoch append the row, write best.ckpt if val/acc has improved (never the test split), then write last.ckpt.

    last.ckpt comes last, so that a kill before it only means that the epoch is trained again, to the same end, and its row is cut then.
    The callback's state is the clock, the number of threads (another number gives other bits), and the best accuracy.
    """

    def __init__(
        self,
        folder: Path,
        num_experts: int,
        first_files: Mapping[str, str],
        introduction: Sequence[str] = (),
        logger: "RunLogger | None" = None,
    ) -> None:
        self.folder = folder
        self.first_files = first_files  # name -> text, written before the first epoch
        self.introduction = introduction  # lines, said before it
        self.logger = logger
        self.columns = columns(num_experts)
        self.seconds_before = self.cpu_seconds_before = 0.0
        self.started, self.cpu_started = time.perf_counter(), cpu_clock()
        self.best = -1.0
        self.log_file: logging.FileHandler | None = None

    @property
    def wall_seconds(self) -> float:
        """Time spent training, over all resumed pieces."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def cpu_seconds(self) -> float:
        """Processor time spent training by this process and the workers it has ended, over all resumed pieces."""
        return self.cpu_seconds_before + cpu_clock() - self.cpu_started

    def state_dict(self) -> dict[str, Any]:
        clocks = {"wall_seconds": self.wall_seconds, "cpu_seconds": self.cpu_seconds}
        return {**clocks, "threads": torch.get_num_threads(), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before, self.best = state_dict["wall_seconds"], state_dict["best"]
        self.cpu_seconds_before = state_dict.get("cpu_seconds", 0.0)  # files of before it was counted
        torch.set_num_threads(state_dict["threads"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing is on disk before this. Ranks started by hand may have read another time of day: rank 0's folder is the run's."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        if trainer.is_global_zero:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.folder} cannot be made: {error.strerror}; choose another place with hydra.run.dir=...") from error
            for name, text in self.first_files.items():
                write_durably(self.folder / name, text)
            self.open()
            for line in self.introduction:
                log.info(line)
            if trainer.world_size > 1:
                log.info(f"{trainer.world_size} processes")
            if self.logger is not None:
                self.logger.start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.close()

    def open(self) -> None:
        """Write what is said to run.log."""
        self.log_file = logging.FileHandler(self.folder / "run.log", encoding="utf-8")
        self.log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(self.log_file)

    def close(self) -> None:
        """Let go of run.log."""
        if self.log_file is not None:
            log.removeHandler(self.log_file)
            self.log_file.close()
            self.log_file = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.cpu_started = time.perf_counter(), cpu_clock()
        dropped = pl_module.order.dropped if isinstance(pl_module, LongTailModule) else 0
        if dropped and trainer.is_global_zero:
            log.info(f"note: {dropped} pictures of each epoch are dropped, fewer than {trainer.world_size} processes can share")
        if trainer.is_global_zero:
            rows = [row for row in read_rows(self.folder) if int(row["epoch"]) <= trainer.current_epoch]
            lines = [",".join(self.columns)] + [",".join(row.get(name) or "" for name in self.columns) for row in rows]
            write_durably(self.folder / "metrics.csv", "\n".join(lines) + "\n")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LongTailModule)
        if trainer.fit_loop.epoch_loop.batch_progress.current.completed < trainer.num_training_batches:
            return  # stopped by trainer.max_time or max_steps: only whole epochs count, so that resuming gives the same bits
        if trainer.is_global_zero:
            for scores in self.folder.glob("scores*.json"):  # of the shorter run that this one continues
                scores.unlink()
            shutil.rmtree(self.folder / "predictions", ignore_errors=True)
            self.append(pl_module.row)
            if self.logger is not None:
                self.logger.epoch(pl_module.row)
            self.tell(pl_module.row, trainer.max_epochs or 1)
        accuracy = pl_module.row.get("val/acc", -1.0)
        if accuracy > self.best:
            self.best = accuracy
            trainer.save_checkpoint(self.folder / "checkpoints" / "best.ckpt")
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")

    def append(self, row: Mapping[str, float]) -> None:
        cells = [format(row[name], ".8g") if name in row else "" for name in self.columns]
        with open(self.folder / "metrics.csv", "a", encoding="utf-8") as file:
            file.write(",".join(cells) + "\n")

    @staticmethod
    def tell(row: Mapping[str, float], epochs: int) -> None:
        """Every epoch goes to run.log; where no bar can be drawn, some go to the screen."""
        epoch = int(row["epoch"])
        due = epoch in (1, epochs) or epoch * LINES_ON_SCREEN // epochs > (epoch - 1) * LINES_ON_SCREEN // epochs
        level = logging.INFO if due and not sys.stderr.isatty() else logging.DEBUG
        speed = row["images_per_second"]
        log.log(level, f"epoch {epoch}/{epochs}: {in_words(row)}, {speed:{'.0f' if speed >= 10 else '.2g'}} pictures/s")


def cpu_clock() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU: tensors and plain values, nothing is executed. UserError if the file is damaged."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}): put back a copy of it") from error
    return content


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The complete rows of a run's metrics.csv; none if there is no file yet."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if line.endswith("\n")))
