"""Where the seconds of a short run go: `mdcs train` on digits for one epoch, in processes of its own.

    python benchmarks/startup.py           # half a minute

Imports come in the order in which others would import them anyway: torch's optimisers import `torch._dynamo`; Lightning imports
torchmetrics, which imports scipy.signal, matplotlib and torchvision where they are installed. `dataset and parts` is `build`, and the last
row is the run after it, which ends with its report.
"""

import json
import subprocess
import sys
import tempfile

from side_by_side import machine, options

PROGRAM = """
import importlib, json, sys, time
clock = lambda: (time.perf_counter(), time.process_time())
marks = [clock()]
for name in sys.argv[2:]:
    importlib.import_module(name)
    marks.append(clock())
from mdcs.config import compose, plain
cfg = plain(compose("train", ["trainer.max_epochs=1", "trainer.enable_progress_bar=false"]))
marks.append(clock())
from mdcs.build import build
run = build(cfg)
marks.append(clock())
from pathlib import Path
from mdcs.train import fit
fit(run, Path(sys.argv[1]))
marks.append(clock())
print(json.dumps([[b[i] - a[i] for i in (0, 1)] for a, b in zip(marks, marks[1:])]))
"""
IMPORTS = ("torch", "torch._dynamo", "torchmetrics", "pytorch_lightning", "mdcs.train")
PARTS = (*(f"import {name}" for name in IMPORTS), "configuration", "dataset and parts", "one epoch, predictions, scores, report")


def measured() -> list[tuple[float, float]]:
    """Wall and processor seconds of each part."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, f"{place}/run", *IMPORTS]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [(wall, used) for wall, used in json.loads(out.splitlines()[-1])]


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    rounds = [measured() for _ in range(1 if chosen.quick else max(3, chosen.rounds))]
    lines = [machine(), "", f"| part (n = {len(rounds)}) | s, wall | s, processor |", "|---|---|---|"]
    for number, name in enumerate((*PARTS, "together")):
        values = [found[number] if number < len(PARTS) else tuple(map(sum, zip(*found, strict=True))) for found in rounds]
        walls, used = (sorted(column)[len(rounds) // 2] for column in zip(*values, strict=True))
        lines.append(f"| {name} | {walls:.2f} | {used:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
