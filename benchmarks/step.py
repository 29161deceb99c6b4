"""A training step of MDCS on CIFAR-100-LT, ResNet-32, K = 3, 64 pictures in two views: network, loss, backward, optimiser, without views.

    python benchmarks/step.py              # minutes

Speed-ups are against the plain way (plain.py). Each way has a process of its own, for the heap of one would help another; they take turns.
The fast ways keep freed memory as `mdcs train` does (mdcs.training.memory); "usual memory" does not. Pages are those that the system hands
out in a step. The share of the limit is that of the fastest large convolution or product of matrices in the precision used, measured in the
same run; bfloat16 is left out where the processor is slow at it.
"""

import contextlib
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch.nn import functional as F

from mdcs.losses.mdcs import MDCS
from mdcs.models.expert_net import ExpertNet
from mdcs.models.resnet_cifar import ResNetCifar
from mdcs.training.memory import freed_memory_kept, peak_mib
from mdcs.training.trainer import fast_bfloat16
from mdcs.types import Classes, Output, Views
from plain import ExpertResNet, mdcs_loss
from side_by_side import Seconds, Timing, limits, machine, options

COUNTS = (500 * 0.01 ** (torch.arange(100) / 99)).long()
GFLOP_A_VIEW = 3 * 0.2007  # forward and backward; a multiply-add is two operations


def plain_way(images: torch.Tensor, labels_B: torch.Tensor, depth: int) -> Callable[[], None]:
    net = ExpertResNet(3, 100, depth)
    optimiser = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)

    def step() -> None:
        optimiser.zero_grad()
        mdcs_loss(net(images), labels_B, COUNTS, [-0.5, 1.0, 2.5], 1).backward()
        optimiser.step()

    return step


def fast_way(images: torch.Tensor, labels_B: torch.Tensor, depth: int, precision: str, grouped: bool) -> Callable[[], None]:
    """As the training module has it."""
    net = ExpertNet(ResNetCifar(3, depth, grouped=grouped), 100).to(memory_format=torch.channels_last)
    loss = MDCS(Classes(tuple(map(str, range(100))), COUNTS))
    optimiser = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    images = images.contiguous(memory_format=torch.channels_last)
    views = Views(images.unflatten(0, (2, -1)), F.one_hot(labels_B, 100).float(), labels_B)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = net(images)
        loss(Output(*(x.unflatten(0, (2, -1)) for x in out)), views, 1)["loss"].backward()
        optimiser.step()

    return step


steps: list[Callable[[], None]] = []  # of this process: `start` puts the one of its way here, and `turn` takes it
kept = contextlib.ExitStack()  # until this process ends


def start(way: str, rows: int, depth: int, threads: int) -> None:
    """Make this process that of one way."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images, labels_B = torch.randn(2 * rows, 3, 32, 32), torch.randint(100, (rows,))
    precision, *switches = way.split(", ")
    if precision == "plain":
        steps.append(plain_way(images, labels_B, depth))
        return
    if "usual memory" not in switches:
        kept.enter_context(freed_memory_kept())
    steps.append(fast_way(images, labels_B, depth, precision, "grouped" in switches))


def turn(calls: int) -> tuple[Seconds, float, float]:
    """Of one step after two that are not timed: seconds, wall and processor, and pages; and the peak of memory so far in MiB."""
    (step,) = steps
    for _ in range(2):
        step()
    pages, wall, used = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter(), time.process_time()
    for _ in range(calls):
        step()
    seconds = (time.perf_counter() - wall) / calls, (time.process_time() - used) / calls
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages) / calls, peak_mib()


def ways_here(quick: bool) -> list[str]:
    bf16 = ["bf16, loop", "bf16, loop, usual memory", "bf16, grouped"] if fast_bfloat16("cpu") and not quick else []
    return ["plain", "fp32, loop", "fp32, loop, usual memory", "fp32, grouped", *bf16][: 2 if quick else None]


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    rows, depth, calls = (4, 8, 1) if chosen.quick else (64, 32, 5)
    timing, pages, peaks = Timing({}), dict[str, list[float]](), dict[str, float]()
    with contextlib.ExitStack() as stack:
        processes = {}
        for way in ways_here(chosen.quick):
            arguments = (way, rows, depth, torch.get_num_threads())
            processes[way] = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), start, arguments))
        for _ in range(chosen.rounds):
            for way, process in processes.items():
                seconds, faults, peaks[way] = process.submit(turn, calls).result()
                timing.rounds.setdefault(way, []).append(seconds)
                pages.setdefault(way, []).append(faults)
    lines = [machine(), "", timing.table("plain"), ""]
    if not fast_bfloat16("cpu"):
        lines += ["Without bfloat16, which this processor is slow at.", ""]
    found = limits(chosen.quick)
    lines += [f"- {name}: {value:.0f}" for name, value in found.items()]
    for way in timing.rounds:
        rate = GFLOP_A_VIEW * 2 * rows / timing.median(way)
        limit = max(value for name, value in found.items() if ("bfloat16" if "bf16" in way else "float32") in name)
        share = "" if chosen.quick else f"{rows / timing.median(way):.0f} pictures/s, {rate:.0f} GFLOP/s, {rate / limit:.0%} of the limit, "
        lines.append(f"- {way}: {share}{statistics.median(pages[way]):,.0f} pages a step, peak {peaks[way]:,.0f} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
