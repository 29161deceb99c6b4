"""The published CIFAR-100-LT recipe (IF 100, 400 epochs), several seeds, in pieces that may be as short as one likes.

    python benchmarks/cifar100_if100_zip.py data cifar100_lt.zip                            # once, where the data set is
    python benchmarks/cifar100_if100.py --root cifar100_lt.zip --minutes 10                 # again and again, until it says that it is done
    python benchmarks/cifar100_if100.py --root cifar100_lt.zip model.grouped=true           # with other words of `mdcs train`
    python benchmarks/cifar100_if100.py --root cifar100_lt.zip --epochs 200 --seeds 1       # the shorter schedule

400 epochs are published with their accuracy. Of 200 epochs only the milestones are, 160 and 180, in a comment of the published
configuration; the other settings stay. Those are two hours on two cores with AVX-512 and bfloat16 instructions.

For a GPU; needs no network, wandb or plotting. A call ends within --minutes, and the next one goes on after the last finished epoch, so
--runs must stay. Epochs are trained in bfloat16 where the device is fast at it (trainer.precision=auto), the published ones in float32.
Writes benchmarks/results/cifar100_if100.md (or …_200_epochs.md) after each run: the last epoch on the test split, nothing is chosen.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdcs.training.checkpoint import read_rows
from side_by_side import processor

RESULTS = Path(__file__).parent / "results"
SCHEDULES = {400: (), 200: ("trainer.max_epochs=200", "optim.milestones=[0.8,0.9]")}
GROUPS = ("accuracy", "accuracy_many", "accuracy_medium", "accuracy_few")
RESERVED = 60  # seconds of a call for starting and for the predictions at the end
FEWEST = 30  # seconds of training that are worth a start
# conf/experiment/cifar100_if100.yaml
REFERENCES = [
    "| published, 400 epochs (arXiv:2308.09922, supplement, Table 1, presumably this set) | 56.1 | | | | | |",
    "| a third party's rerun of the published code, presumably 400 epochs | 55.4 | 72.9 | 56.3 | 33.7 | | |",
]
TINY = ("model=resnet8", "model.width=[4,4,4]", "trainer.max_epochs=2", "data.batch_size=256", "trainer.enable_progress_bar=false")


def piece(words: Sequence[str], folder: Path, seconds: float | None) -> bool:
    """Train `folder` for so long, from where it is; whether it is finished."""
    started = (folder / "config.yaml").exists()
    arguments = [f"resume={folder}"] if started else [*words, f"hydra.run.dir={folder}"]
    # a run that was started with a limit keeps it unless it is given another
    arguments.append(f"trainer.max_time={{seconds: {10**7 if seconds is None else int(seconds)}}}")
    done = subprocess.run([sys.executable, "-m", "mdcs", "train", *arguments])
    if done.returncode:
        sys.exit(f"{folder}: mdcs train has ended with code {done.returncode}")
    return (folder / "scores.json").exists()


def left(deadline: float | None) -> float | None:
    """Seconds of training that fit before the deadline; None = as many as one likes."""
    return None if deadline is None else deadline - time.monotonic() - RESERVED


def table(folders: Sequence[Path], epochs: int, command: str) -> str:
    """The runs' last epochs beside the published one."""
    lines = ["| run | overall | many | medium | few | seconds of training | pictures/s |", "|---|---|---|---|---|---|---|"]
    finished: list[dict[str, Any]] = []
    for folder in folders:
        if (folder / "scores.json").exists():
            finished.append(scores := json.loads((folder / "scores.json").read_text(encoding="utf-8")))
            cells = ["n/a" if scores[key] is None else f"{100 * scores[key]:.1f}" for key in GROUPS]
            cells += [f"{scores['wall_seconds']:.0f}", f"{scores['images_per_second']:.0f}"]
        else:
            cells = [f"after epoch {len(read_rows(folder))} of {epochs}", "", "", "", "", ""]
        lines.append(f"| seed {folder.name} | {' | '.join(cells)} |")
    if len(finished) > 1:
        columns = [[100 * (scores[key] or 0) for scores in finished] for key in GROUPS]  # no group is empty at IF 100
        cells = [f"{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}" for column in columns]
        lines.append(f"| mean ± s.d., n = {len(finished)} | {' | '.join(cells)} | | |")
    head = f"# CIFAR-100-LT, IF 100: the published recipe, {epochs} epochs\n\n`{command}`"
    if finished:
        first = finished[0]
        commits = sorted({str(scores["git_commit"]) for scores in finished})
        memory = f", peak memory {first['peak_memory_mib']:,} MiB" + (
            f", {first['peak_device_memory_mib']:,} MiB on the device" if "peak_device_memory_mib" in first else ""
        )
        versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
        device = processor() if first["device"] == "cpu" else first["device"]
        head += f"\n\n{device}, {first['precision']}{memory}; {versions}; commit {', '.join(commits)}.\n"
        head += f"{first['train_pictures']:,} training and {first['n']:,} test pictures; last epoch, mean of the experts, in %."
    return "\n".join([head, "", *lines, *REFERENCES]) + "\n"


def main(words: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="CIFAR-100, any layout of data/README.md, or the zip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="this call ends within them; 3 or more")
    parser.add_argument("--epochs", type=int, choices=sorted(SCHEDULES), default=400)
    parser.add_argument("--runs", type=Path, help="runs/cifar100_if100, or …_200_epochs")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed of 2 epochs of a tiny network, interrupted at once: whether it runs")
    parser.add_argument("words", nargs="*", help="more words of `mdcs train`")
    chosen = parser.parse_args(words)
    deadline = None if chosen.minutes is None else time.monotonic() + 60 * chosen.minutes
    fixed = ["experiment=cifar100_if100", f"data.root={chosen.root}", "trainer.precision=auto", *SCHEDULES[chosen.epochs]]
    fixed += [*(TINY if chosen.quick else ()), *chosen.words]
    name = "cifar100_if100" if chosen.epochs == 400 else f"cifar100_if100_{chosen.epochs}_epochs"
    runs, output = chosen.runs or Path("runs") / name, chosen.output or RESULTS / f"{name}.md"
    folders = [runs.absolute() / str(seed) for seed in range(1 if chosen.quick else chosen.seeds)]
    epochs = 2 if chosen.quick else chosen.epochs
    said = ["--quick"] if chosen.quick else [f"--epochs {epochs}"] if epochs != 400 else []
    command = " ".join(["python benchmarks/cifar100_if100.py", *said, *chosen.words])
    text = ""
    for seed, folder in enumerate(folders):
        seconds, done = left(deadline), (folder / "scores.json").exists()
        if not done and (seconds is None or seconds >= FEWEST):
            done = not chosen.quick and piece([*fixed, f"seed={seed}"], folder, seconds)
            if chosen.quick:
                assert not piece([*fixed, f"seed={seed}"], folder, 0)
                done = piece([], folder, None)
        text = table(folders, epochs, command)
        output.write_text(text, encoding="utf-8")
        if not done:
            return f"{text}\nThe time is over: the same command goes on.\n"
    return f"{text}\nDone.\n"


if __name__ == "__main__":
    print(main())
