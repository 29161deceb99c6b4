"""Run all speed benchmarks and write benchmarks/RESULTS.md: `make bench`, best on a machine that does nothing else. About half an hour."""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = {
    "step.py": "Training step",
    "memory.py": "Memory kept from step to step",
    "loss.py": "Loss",
    "launches.py": "Operations a step",
    "views.py": "Both views",
    "evaluation_speed.py": "Evaluation from stored predictions",
    "growth.py": "Growth",
    "loop.py": "Lightning's loop",
    "startup.py": "Start-up",
}


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
        "Ways that are compared take turns in one process; ratios are medians over rounds (`benchmarks/side_by_side.py`).\n"
        "The plain way is `benchmarks/plain.py` and `benchmarks/plain_views.py`.\n"
    )
    for script, title in SCRIPTS.items():
        if not (HERE / script).exists():
            continue
        command = [sys.executable, str(HERE / script), *(["--quick"] if arguments.quick else [])]
        print(f"{script} ...", file=sys.stderr, flush=True)
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        text += f"\n## {title}\n\n`python benchmarks/{script}`\n\n{output.strip()}\n"
    if not arguments.quick:
        (HERE / "RESULTS.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
