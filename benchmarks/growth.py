"""How cost grows: a step with the number of experts, of classes and with the side of the pictures; start-up with the number of pictures.

    python benchmarks/growth.py            # minutes, 200 MiB of disk

Operations of a step are 3 times those of the forward pass: torch's counter takes grouped convolutions' backward for more than they are.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mdcs.losses.mdcs import MDCS
from mdcs.models.expert_net import ExpertNet
from mdcs.models.resnet_cifar import ResNetCifar
from mdcs.types import Classes, Output, Views
from side_by_side import machine, options, take_turns

START = """
import resource, sys, time
import torch
from mdcs.data.lists import Lists
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started, used = time.perf_counter(), time.process_time()
splits = Lists(sys.argv[1], "imagenet_lt", 1000).splits()
seconds, used = time.perf_counter() - started, time.process_time() - used
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(splits.train.labels), seconds, used, (peak - before) / 1024)
"""


def step_of(num_experts: int, num_classes: int, side: int, rows: int, depth: int) -> tuple[Callable[[], None], int]:
    """A step in bfloat16, and the operations of its forward pass."""
    torch.manual_seed(0)
    net = ExpertNet(ResNetCifar(num_experts, depth), num_classes).to(memory_format=torch.channels_last)
    loss = MDCS(Classes(tuple(map(str, range(num_classes))), torch.arange(num_classes) + 5), num_experts)
    optimiser = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    images = torch.randn(2 * rows, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels_B = torch.randint(num_classes, (rows,))
    views = Views(images.unflatten(0, (2, rows)), F.one_hot(labels_B, num_classes).float(), labels_B)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = net(images)
        loss(Output(*(x.unflatten(0, (2, rows)) for x in out)), views, 1)["loss"].backward()
        optimiser.step()

    return step, counter.get_total_flops()


def grown(what: str, cases: Mapping[str, tuple[Callable[[], None], int]], rounds: int) -> str:
    """Time and operations of each case, relative to the first."""
    timing = take_turns({name: step for name, (step, _) in cases.items()}, rounds)
    first = next(iter(cases))
    lines = [f"| {what} | ms, wall | ms, processor | time, times | operations, times | time / operations |", "|---|---|---|---|---|---|"]
    for name, (_, operations) in cases.items():
        slower, more = timing.ratio(name, first, 1), operations / cases[first][1]
        cells = f"{1e3 * timing.median(name):.3g} | {1e3 * timing.median(name, 1):.3g} | {slower:.2f} | {more:.2f} | {slower / more:.2f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def start_up(num_pictures: int) -> tuple[float, float, float]:
    """Seconds, processor seconds and MiB for the lists of so many training pictures, in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        for split, count in (("train", num_pictures), ("val", 1000), ("test", 1000)):
            lines = (f"train/n{10000000 + i % 1000}/n{10000000 + i % 1000}_{i}.JPEG {i % 1000}\n" for i in range(count))
            (Path(place) / f"ImageNet_LT_{split}.txt").write_text("".join(lines))
        found = subprocess.run([sys.executable, "-c", START, place], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) == num_pictures
    return float(found[1]), float(found[2]), float(found[3])


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    rows, depth = (2, 8) if chosen.quick else (32, 32)
    experts, classes, sides = ((1, 2), (10, 20), (8, 16)) if chosen.quick else ((1, 2, 3, 4, 6, 8), (10, 100, 1000, 8142), (32, 64, 96))
    parts = [
        machine(),
        grown(f"experts (B = {rows})", {f"K = {k}": step_of(k, 100, sides[0], rows, depth) for k in experts}, chosen.rounds),
        grown("classes (K = 3)", {f"C = {c}": step_of(3, c, sides[0], rows, depth) for c in classes}, chosen.rounds),
        grown("side (K = 3)", {f"{s} px": step_of(3, 100, s, max(2, rows // 4), depth) for s in sides}, chosen.rounds),
    ]
    lines = ["| pictures in lists | seconds, wall | processor | growth of peak memory, MiB |", "|---|---|---|---|"]
    for count in (2000,) if chosen.quick else (10_000, 100_000, 1_000_000):
        wall, used, mib = start_up(count)
        lines.append(f"| {count:,} | {wall:.2f} | {used:.2f} | {mib:.0f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return "\n\n".join([*parts, "\n".join(lines), f"Peak memory of the steps above: {peak} MiB."])


if __name__ == "__main__":
    print(main())
