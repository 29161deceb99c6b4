"""What Lightning's loop and our meters cost a step: `trainer.fit` against a bare loop over the same batches, views, network and loss.

    python benchmarks/loop.py              # a minute

The network is as small as it can be, so that little else is left. Checkpoints and rows of metrics.csv, once an epoch, are counted in.
"""

import tempfile
import time
from pathlib import Path

import torch

from mdcs.build import Run, build
from mdcs.config import compose, plain
from mdcs.training.checkpoint import RunFolder
from mdcs.training.trainer import make_trainer
from mdcs.types import Output
from side_by_side import machine, options

WORDS = ["model.num_experts=1", "model.width=[2,2,2]", "data.batch_size=4", "trainer.enable_progress_bar=false"]


def prepared(epochs: int) -> Run:
    cfg = plain(compose("train", [*WORDS, f"trainer.max_epochs={epochs}"]))
    return build(cfg)


def with_lightning(run: Run) -> tuple[float, int]:
    """Processor seconds of `fit`, and its steps."""
    with tempfile.TemporaryDirectory() as place:
        trainer = make_trainer(run.config, RunFolder(Path(place) / "run", 1, {}), False)
        used = time.process_time()
        trainer.fit(run.module, datamodule=run.data())
        return time.process_time() - used, trainer.global_step


def bare(run: Run, epochs: int) -> tuple[float, int]:
    """The same work in a loop."""
    module, loader, steps = run.module, run.data().train_dataloader(), 0
    optimiser = torch.optim.SGD(run.net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    used = time.process_time()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            views = module.augment(batch, module.loss.views, module.num_classes, epoch)
            out = Output(*(x.unflatten(0, (len(views.images), -1)) for x in run.net(views.images.flatten(0, 1))))
            optimiser.zero_grad()
            module.loss(out, views, epoch + 1)["loss"].backward()
            optimiser.step()
            steps += 1
    return time.process_time() - used, steps


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    epochs, differences, rows = 1 if chosen.quick else 10, [], []
    for _ in range(chosen.rounds):
        one, steps = with_lightning(prepared(epochs))
        other, same = bare(prepared(epochs), epochs)
        assert steps == same
        rows.append((1e3 * one / steps, 1e3 * other / steps))
        differences.append(rows[-1][0] - rows[-1][1])
    middle = len(rows) // 2
    fit, loop = (sorted(column)[middle] for column in zip(*rows, strict=True))
    lines = [machine(), "", f"| way (n = {len(rows)} x {steps} steps) | ms a step, processor |", "|---|---|"]
    lines += [f"| trainer.fit | {fit:.2f} |", f"| bare loop | {loop:.2f} |", f"| difference | {sorted(differences)[middle]:.2f} |"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
