"""What it saves on a CPU to keep freed memory from step to step (mdcs.training.memory): steps of step.py, in processes that take turns.

    python benchmarks/memory.py            # minutes

The two ways need processes of their own, because they would share one heap.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from mdcs.training.trainer import fast_bfloat16
from side_by_side import machine, options

PROGRAM = """
import contextlib, json, resource, sys, time
import torch
from step import fast_way
from mdcs.training.memory import freed_memory_kept
kept, precision, threads, rows, depth, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
torch.manual_seed(0)
step = fast_way(torch.randn(2 * rows, 3, 32, 32), torch.randint(100, (rows,)), depth, precision, False)
with freed_memory_kept() if kept == "kept" else contextlib.nullcontext():
    step()
    step()
    before, wall, used = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    seconds = time.perf_counter() - wall, time.process_time() - used
    after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([seconds[0] / steps, seconds[1] / steps, (after.ru_minflt - before) / steps, after.ru_maxrss / 1024]))
"""


def measured(way: str, precision: str, threads: int, quick: bool) -> list[float]:
    """Seconds a step, wall and processor; pages that the system handed out a step; peak memory in MiB."""
    sizes = (4, 8, 2) if quick else (64, 32, 6)
    command = [sys.executable, "-c", PROGRAM, way, precision, str(threads), *map(str, sizes)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout
    return [float(value) for value in json.loads(out)]


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    lines = [machine(), "", f"| way (n = {chosen.rounds}) | ms, wall | ms, processor | pages a step | peak MiB |", "|---|---|---|---|---|"]
    saved = []
    for precision in ("fp32", "bf16") if fast_bfloat16("cpu") and not chosen.quick else ("fp32",):
        rounds = {way: [] for way in ("usual", "kept")}
        for _ in range(chosen.rounds):
            for way, found in rounds.items():
                found.append(measured(way, precision, torch.get_num_threads(), chosen.quick))
        for way, found in rounds.items():
            wall, used, pages, peak = (statistics.median(column) for column in zip(*found, strict=True))
            lines.append(f"| {precision}, {way} | {1e3 * wall:.3g} | {1e3 * used:.3g} | {pages:,.0f} | {peak:,.0f} |")
        ratio = statistics.median(one[1] / other[1] for one, other in zip(rounds["usual"], rounds["kept"], strict=True))
        saved.append(f"- {precision}: {1 - 1 / ratio:.0%} of processor time saved, median of rounds")
    return "\n".join([*lines, "", *saved])


if __name__ == "__main__":
    print(main())
