"""Epochs 1 to 3 of the published CIFAR-100-LT recipe (IF 100, 400 epochs), two seeds, against a run of the published code.

    python benchmarks/cifar100_first_epochs.py --root cifar100.zip          # took 5 and 13 minutes on 2 cores: one thread a seed

Reference: the published trainer, one seed, another subset of the same size: train loss 12.875, 11.538, 11.147; after epoch 3 expert 1
has 16.4 % on many-shot and 0 % on few-shot classes, expert 3 0 % and 7.3 %. Writes benchmarks/results/cifar100_first_epochs.md, and exits 1
if a loss is further than 3 % from the reference or the experts have not specialised.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from side_by_side import processor

PUBLISHED = [12.875, 11.538, 11.147]
STEPS = 3 * 170


def train(seed: int, root: str, folder: Path) -> None:
    """The first 510 steps of 68,000; the learning rate and the distillation ramp are those of the whole run."""
    if (folder / "scores.json").exists():
        return
    words = ["experiment=cifar100_if100", f"data.root={root}", f"seed={seed}", f"trainer.max_steps={STEPS}", f"hydra.run.dir={folder}"]
    if (folder / "config.yaml").exists():
        words = [f"resume={folder}"]
    subprocess.run([sys.executable, "-m", "mdcs", "train", *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="CIFAR-100, any layout of data/README.md")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar100_first_epochs"))
    arguments = parser.parse_args()
    folders = [arguments.runs.absolute() / str(seed) for seed in range(arguments.seeds)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: train(seed, arguments.root, folders[seed]), range(arguments.seeds)))

    scores = [json.loads((folder / "scores.json").read_text()) for folder in folders]
    tables = [csv.DictReader((folder / "metrics.csv").read_text().splitlines()) for folder in folders]
    losses = [[float(row["train/loss"]) for row in table] for table in tables]
    first = scores[0]
    lines = [
        f"# CIFAR-100-LT, IF 100: epochs 1 to 3 of 400, n = {arguments.seeds} seeds",
        "",
        f"`python benchmarks/cifar100_first_epochs.py`, commit {first['git_commit']}, torch {first['versions']['torch']}, "
        f"{processor()}, one thread a run, {first['precision']}, {first['train_pictures']} training and {first['n']} test pictures "
        "from class folders (a subset of its own: neither the official one nor the reference's).",
        "",
        "Train loss by epoch; in brackets the difference to the published code.",
        "",
        "| epoch | published code, 1 seed | " + " | ".join(f"seed {seed}" for seed in range(arguments.seeds)) + " |",
        "|---|---|" + "---|" * arguments.seeds,
    ]
    good = True
    for epoch, published in enumerate(PUBLISHED):
        cells = [f"{of[epoch]:.3f} ({100 * (of[epoch] / published - 1):+.1f} %)" for of in losses]
        good &= all(abs(of[epoch] / published - 1) < 0.03 for of in losses)
        lines.append(f"| {epoch + 1} | {published} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Test accuracy in % after epoch 3 (many / medium / few):",
        "",
        "| | " + " | ".join(f"seed {s}" for s in range(arguments.seeds)) + " |",
    ]
    lines.append("|---|" + "---|" * arguments.seeds)
    for k in range(3):
        experts = [of["experts"][k] for of in scores]
        cells = [" / ".join(f"{100 * expert[f'accuracy_{group}']:.1f}" for group in ("many", "medium", "few")) for expert in experts]
        lines.append(f"| expert {k + 1} | " + " | ".join(cells) + " |")
    for of in scores:
        head, _, tail = of["experts"]
        good &= head["accuracy_many"] > tail["accuracy_many"] and tail["accuracy_few"] > head["accuracy_few"]
    lines += ["", f"Seconds a run: {', '.join(str(round(of['wall_seconds'])) for of in scores)} (two at a time)."]
    results = Path(__file__).parent / "results" / "cifar100_first_epochs.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(results.read_text(encoding="utf-8"))
    sys.exit(0 if good else "a loss is further than 3 % from the reference, or the experts have not specialised")


if __name__ == "__main__":
    main()
