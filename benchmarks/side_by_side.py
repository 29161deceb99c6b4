"""How the benchmarks here measure: all ways take turns, A B C A B C, and every ratio is the median over rounds of A/B.

So a busy moment of the machine meets all ways, and a slow drift cancels. Wall time is what a user waits; processor time hardly changes when
other work runs, and is the one to believe on a busy machine.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mdcs.training.trainer import fast_bfloat16

Seconds = tuple[float, float]  # wall, processor


@dataclass
class Timing:
    """Seconds a call, by way and round."""

    rounds: dict[str, list[Seconds]]

    def median(self, way: str, clock: int = 0) -> float:
        return statistics.median(seconds[clock] for seconds in self.rounds[way])

    def ratio(self, slow: str, fast: str, clock: int = 0) -> float:
        """How many times as long `slow` takes: the median over rounds."""
        pairs = zip(self.rounds[slow], self.rounds[fast], strict=True)
        return statistics.median(a[clock] / b[clock] for a, b in pairs)

    def table(self, plain: str, header: str = "way") -> str:
        """Markdown: each way, and how much faster it is than `plain`."""
        n = len(self.rounds[plain])
        lines = [f"| {header} (n = {n}) | ms, wall | speed-up | ms, processor | speed-up |", "|---|---|---|---|---|"]
        for way in self.rounds:
            cells = [f"{1e3 * self.median(way, clock):.3g} | {self.ratio(plain, way, clock):.2f}" for clock in (0, 1)]
            lines.append(f"| {way} | {' | '.join(cells)} |")
        return "\n".join(lines)


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1, warm_up: int = 1) -> Timing:
    """Time each way `rounds` times, `calls` calls at a time; in each round `warm_up` untimed calls go before those of a way."""
    timing = Timing({name: [] for name in ways})
    for number in range(rounds + 1):
        for name, way in ways.items():
            for _ in range(warm_up):
                way()
            wall, used = time.perf_counter(), time.process_time()
            for _ in range(calls):
                way()
            seconds = (time.perf_counter() - wall) / calls, (time.process_time() - used) / calls
            if number:  # the first round is a warm-up, too
                timing.rounds[name].append(seconds)
    return timing


def best_rate(work: Callable[[], object], amount: float, repeats: int) -> float:
    """`amount` a second in the best of `repeats` calls: a limit, not a mean."""
    fastest = float("inf")
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - started)
    return amount / fastest


def limits(quick: bool = False) -> dict[str, float]:
    """GFLOP/s of large matrix products and convolutions, and GB/s of copies, measured on this machine with the threads in use; of bfloat16
    where the processor is fast at it."""
    side, channels, repeats = (256, 32, 2) if quick else (2048, 256, 8)
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))[: 2 if fast_bfloat16("cpu") else 1]:
        one, other = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
        found[f"matmul {name}, GFLOP/s"] = best_rate(lambda a=one, b=other: a @ b, 2 * side**3 / 1e9, repeats)  # type: ignore[misc]
        images = torch.randn(8, channels, 34, 34, dtype=dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, dtype=dtype)
        operations = 2 * 8 * 32**2 * 9 * channels**2 / 1e9
        found[f"3×3 convolution {name}, GFLOP/s"] = best_rate(lambda x=images, w=weight: F.conv2d(x, w), operations, repeats)  # type: ignore[misc]
    block = torch.zeros(2**20 if quick else 2**26)
    target = torch.empty_like(block)
    found["copy, read and written, GB/s"] = best_rate(lambda: target.copy_(block), 2 * 4 * block.numel() / 1e9, repeats)
    return found


def processor() -> str:
    """The name of the CPU."""
    place = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in place.read_text().splitlines() if line.startswith("model name")]
        if place.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """What the numbers depend on, in one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return f"{processor()}, {torch.get_num_threads()} thread(s), {device}; {versions}"


def options(description: str | None, words: Sequence[str] | None = None) -> argparse.Namespace:
    """--quick and --threads, which all scripts take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: whether it runs, not how fast it is")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    found = parser.parse_args(words)
    if found.threads:
        torch.set_num_threads(found.threads)
    if found.quick:
        found.rounds = 1
    return found
