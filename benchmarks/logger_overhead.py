"""What `logger=wandb logger.mode=offline` costs: training time in the steady state, and seconds at start and finish.

    python benchmarks/logger_overhead.py             # 4 pairs of runs of 1,500 epochs on digits-LT: about 50 minutes on one core
    python benchmarks/logger_overhead.py --quick     # 2 pairs of 30 epochs, to see that it works: prints, writes no results

Runs with and without the logger alternate, and the order within a pair changes, so that a machine that gets slower or faster does not
favour either. "Training" is `wall_seconds` of scores.json: all epochs with their rows, checkpoints and logging; "whole" is the process from
its start to its end. An epoch of 10 steps takes a fifth of a second here: with real epochs the share is smaller, for a row is logged once
an epoch. Finished runs are kept, so it can be stopped and started again. Writes benchmarks/results/logger_overhead.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LOGGERS = {"none": ["logger=none"], "wandb": ["logger=wandb", "logger.mode=offline"]}


def timed(folder: Path, words: list[str]) -> dict[str, float]:
    """Seconds of one run in its own process, unless they are known; a run that was cut short is started again."""
    known = folder.with_suffix(".json")
    if not known.exists():
        if folder.exists():
            folder.rename(folder.with_name(f"{folder.name}-cut-{time.time_ns()}"))
        place = {f"WANDB_{name}_DIR": str(folder.parent / "wandb") for name in ("DATA", "CACHE", "CONFIG")}
        began = time.perf_counter()
        command = [sys.executable, "-m", "mdcs", "train", *words, f"hydra.run.dir={folder}"]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1", **place}, check=True, capture_output=True)
        whole = time.perf_counter() - began
        scores = json.loads((folder / "scores.json").read_text())
        known.write_text(json.dumps({"training": scores["wall_seconds"], "whole": whole, "accuracy": scores["accuracy"]}))
    seconds: dict[str, float] = json.loads(known.read_text())
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1500)
    parser.add_argument("--runs", type=Path, default=Path("runs/logger_overhead"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    pairs, epochs = (2, 30) if arguments.quick else (arguments.pairs, arguments.epochs)
    place = arguments.runs.absolute() / f"{epochs}"
    place.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in LOGGERS}
    for pair in range(pairs):
        for name in list(LOGGERS)[:: 1 if pair % 2 == 0 else -1]:
            measured[name].append(timed(place / f"{name}-{pair}", [*LOGGERS[name], f"trainer.max_epochs={epochs}"]))
            print(name, pair, measured[name][-1], flush=True)
    accuracies = {of["accuracy"] for runs in measured.values() for of in runs}
    assert len(accuracies) == 1, f"a logger must not change the result: {accuracies}"

    training = {name: np.array([of["training"] for of in runs]) for name, runs in measured.items()}
    outside = {name: np.array([of["whole"] - of["training"] for of in runs]) for name, runs in measured.items()}
    percent = 100 * (training["wandb"] / training["none"] - 1)
    more = outside["wandb"] - outside["none"]
    lines = [
        f"# Overhead of logger=wandb, offline: {pairs} pairs of runs, {epochs} epochs on digits-LT, one thread",
        "",
        "`python benchmarks/logger_overhead.py`",
        "",
        "| pair | training, none (s) | training, wandb (s) | difference | start and finish, none (s) | wandb (s) |",
        "|---|---|---|---|---|---|",
    ]
    for i in range(pairs):
        cells = (training["none"][i], training["wandb"][i], percent[i], outside["none"][i], outside["wandb"][i])
        lines.append("| {} | {:.1f} | {:.1f} | {:+.1f} % | {:.1f} | {:.1f} |".format(i + 1, *cells))
    lines += [
        "",
        f"Steady state: {np.median(percent):+.1f} % (median of {pairs}; {percent.min():+.1f} to {percent.max():+.1f}), "
        f"{1000 * np.median(training['wandb'] - training['none']) / epochs:+.1f} ms an epoch. "
        f"Start and finish: {np.median(more):+.1f} s ({more.min():+.1f} to {more.max():+.1f}). The trained weights give the same accuracy.",
    ]
    text = "\n".join(lines) + "\n"
    if not arguments.quick:
        (Path(__file__).parent / "results" / "logger_overhead.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
