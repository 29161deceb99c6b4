"""Runs `mdcs train` in forked processes that kill themselves (SIGKILL) at given points. One process imports, so that the others are quick.

    python tests/kill_points.py FOLDER POINT [POINT ...]

Each POINT starts or resumes the run in FOLDER: `step:E` dies in epoch E's fifth step, `row:E` between the row of epoch E in metrics.csv
and its checkpoint, `checkpoint:E` with half of epoch E's checkpoint written, `end` not at all. Appends "POINT EPOCH" to FOLDER.epochs
for every epoch that begins to be trained.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from mdcs.cli import train_words
from mdcs.training.checkpoint import DurableCheckpointIO, RunFolder
from mdcs.training.module import LongTailModule


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(folder: Path, point: str) -> None:
    """Train with the kill at `point` in place; does not return if it strikes."""
    kind, _, epoch = point.partition(":")
    training_step, append, save_checkpoint = LongTailModule.training_step, RunFolder.append, DurableCheckpointIO.save_checkpoint

    def step(self: LongTailModule, batch: Any, index: int) -> torch.Tensor:
        if index == 0:
            with open(f"{folder}.epochs", "a") as file:
                file.write(f"{point} {self.current_epoch + 1}\n")
        if kind == "step" and self.current_epoch + 1 == int(epoch) and index == 4:
            die()
        return training_step(self, batch, index)

    def row(self: RunFolder, values: Any) -> None:
        append(self, values)
        if kind == "row" and values["epoch"] == int(epoch):
            die()

    def save(self: DurableCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if kind == "checkpoint" and checkpoint["epoch"] + 1 == int(epoch):
            whole = Path(path).with_name("whole")
            torch.save(checkpoint, whole)
            data = whole.read_bytes()
            whole.unlink()
            Path(f"{path}.part").write_bytes(data[: len(data) // 2])
            die()
        save_checkpoint(self, checkpoint, path, storage_options)

    LongTailModule.training_step, RunFolder.append, DurableCheckpointIO.save_checkpoint = step, row, save  # type: ignore[method-assign]
    started = (folder / "config.yaml").exists()
    train_words([f"resume={folder}"] if started else [f"hydra.run.dir={folder}", "trainer.max_epochs=5", "data.val_fraction=0.2"])


if __name__ == "__main__":
    for point in sys.argv[2:]:
        if (child := os.fork()) == 0:
            attempt(Path(sys.argv[1]), point)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if died == (point == "end") or (point == "end" and status != 0):
            sys.exit(f"{point}: unexpected end {status}")
