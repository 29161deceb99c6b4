"""One rank of two, started by torchrun: trains digits-LT with batch-norm in eval mode in float64 and writes what it saw.

torchrun --nproc_per_node=2 tests/ddp_worker.py FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from mdcs.build import build
from mdcs.config import compose, plain
from mdcs.training.checkpoint import RunFolder
from mdcs.training.trainer import make_trainer
from mdcs.types import Batch

WORDS = ["loss.confident_only=false", "trainer.max_epochs=2", "trainer.precision=64-true", "trainer.enable_progress_bar=false"]


class Watch(pl.Callback):
    """Keeps batch-norm in eval mode, which alone makes two ranks differ from one, and notes the pictures of each step."""

    def __init__(self) -> None:
        self.seen: list[list[list[int]]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append([])
        for module in pl_module.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        self.seen[-1].append(batch.index.tolist())


def train(folder: Path, words: list[str]) -> tuple[dict[str, torch.Tensor], Any, dict[str, float]]:
    """Network, pictures by epoch and step of this rank, and the last row of metrics."""
    run = build(plain(compose("train", [*WORDS, *words])))
    watch = Watch()
    trainer = make_trainer(run.config, RunFolder(folder, run.net.num_experts, {}), run.splits.val is not None)
    trainer.callbacks.insert(0, watch)
    trainer.fit(run.module, datamodule=run.data())
    return {name: value.cpu() for name, value in run.net.state_dict().items()}, watch.seen, run.module.row


if __name__ == "__main__":
    out = Path(sys.argv[1])
    state, seen, row = train(out / "run", ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"])
    rank = torch.distributed.get_rank()
    torch.save({"state": state, "row": row}, out / f"rank{rank}.pt")
    (out / f"rank{rank}.json").write_text(json.dumps(seen))
