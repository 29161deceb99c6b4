"""Run all speed benchmarks and write benchmarks/RESULTS.md: `make bench`, best on a machine that does nothing else. About half an hour."""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SCRIPTS: list[tuple[str, str, dict[str, str]]] = [
    ("Training step", "step.py", {}),
    ("Batch normalisation", "batch_norm.py", {}),
    ("Loss", "loss.py", {}),
    ("Loss, one thread", "loss.py", ONE_THREAD),
    ("Operations a step", "launches.py", {}),
    ("Both views", "views.py", {}),
    ("Evaluation from stored predictions", "evaluation_speed.py", {}),
    ("Growth", "growth.py", {}),
    ("Growth, one thread", "growth.py", ONE_THREAD),
    ("Lightning's loop", "loop.py", {}),
    ("Lightning's loop, one thread", "loop.py", ONE_THREAD),
    ("Start-up", "startup.py", {}),
]


def commit() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="whether all of it runs; writes nothing")
    arguments = parser.parse_args()
    load = f", load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    text = (
        "# Speed\n\n"
        f"`make bench` at commit {commit()}, {time.strftime('%Y-%m-%d')},\n"
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs{load}.\n"
        "Ways that are compared take turns; ratios are medians over rounds (`benchmarks/side_by_side.py`).\n"
        "The plain way is `benchmarks/plain.py` and `benchmarks/plain_views.py`.\n"
    )
    for title, script, environment in SCRIPTS:
        command = [sys.executable, str(HERE / script), *(["--quick"] if arguments.quick else [])]
        print(f"{title} ...", file=sys.stderr, flush=True)
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment).stdout
        words = " ".join([*(f"{name}={value}" for name, value in environment.items()), f"python benchmarks/{script}"])
        text += f"\n## {title}\n\n`{words}`\n\n{output.strip()}\n"
    if not arguments.quick:
        (HERE / "RESULTS.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
