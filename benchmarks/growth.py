"""How cost grows: a step with the number of experts, of classes and with the side of the pictures; start-up with the number of pictures.

    python benchmarks/growth.py            # minutes, 200 MiB of disk

Operations of a step are 3 times those of the forward pass: torch's counter takes grouped convolutions' backward for more than they are.
Times are ratios of processor time, medians over rounds. Where other work shares a core it inflates a step's processor time too, by a
tenth and more; the last column compares the fastest round of each case with that of the first.
"""

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
from mdcs.training.memory import freed_memory_kept, peak_mib
from mdcs.training.trainer import fast_bfloat16
from mdcs.types import Classes, Output, Views
from side_by_side import machine, options, take_turns

START = """
import sys, time
from mdcs.build import build
from mdcs.config import compose, plain
from mdcs.train import first_files
from mdcs.training.memory import peak_mib
cfg = plain(compose("train", ["data=imagenet_lt", "data.root=" + sys.argv[1], "model=resnet10"]))
before = peak_mib()
marks = [(time.perf_counter(), time.process_time())]
run = build(cfg)
marks.append((time.perf_counter(), time.process_time()))
first_files(run)
next(iter(run.data().train_dataloader().sampler))
marks.append((time.perf_counter(), time.process_time()))
print(len(run.splits.train.labels), *(mark[i] - marks[0][i] for mark in marks[1:] for i in (0, 1)), before, peak_mib() - before)
"""


def step_of(num_experts: int, num_classes: int, side: int, rows: int, depth: int) -> tuple[Callable[[], None], int]:
    """A step in the precision that trainer.precision=auto picks here, and the operations of its forward pass."""
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
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16("cpu")):
            out = net(images)
        loss(Output(*(x.unflatten(0, (2, rows)) for x in out)), views, 1)["loss"].backward()
        optimiser.step()

    return step, counter.get_total_flops()


def grown(what: str, cases: Mapping[str, tuple[Callable[[], None], int]], rounds: int) -> str:
    """Time and operations of each case, relative to the first."""
    timing = take_turns({name: step for name, (step, _) in cases.items()}, rounds)
    first = next(iter(cases))
    fastest = {name: min(used for _, used in found) for name, found in timing.rounds.items()}
    lines = [
        f"| {what} | ms, wall | ms, processor | time, times | operations, times | time / operations | of the fastest rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (_, operations) in cases.items():
        slower, more = timing.ratio(name, first, 1), operations / cases[first][1]
        cells = [f"{1e3 * timing.median(name):.3g}", f"{1e3 * timing.median(name, 1):.3g}", f"{slower:.2f}", f"{more:.2f}"]
        lines.append(f"| {' | '.join([name, *cells, f'{slower / more:.2f}', f'{fastest[name] / fastest[first] / more:.2f}'])} |")
    return "\n".join(lines)


def start_up(num_pictures: int) -> list[float]:
    """For lists of so many training pictures, in a process of its own: seconds, wall and processor, until they are read and all parts
    made, and until the first batch can be asked for; MiB after the imports, and by how much the peak is above that.
    """
    with tempfile.TemporaryDirectory() as place:
        for split, count in (("train", num_pictures), ("val", 1000), ("test", 1000)):
            lines = (f"train/n{10000000 + i % 1000}/n{10000000 + i % 1000}_{i}.JPEG {i % 1000}\n" for i in range(count))
            (Path(place) / f"ImageNet_LT_{split}.txt").write_text("".join(lines))
        found = subprocess.run([sys.executable, "-W", "ignore", "-c", START, place], capture_output=True, text=True, check=True).stdout
    count, *measured = found.split()
    assert int(count) == num_pictures
    return [float(value) for value in measured]


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    rows, depth = (2, 8) if chosen.quick else (32, 32)
    experts, classes, sides = ((1, 2), (10, 20), (8, 16)) if chosen.quick else ((1, 2, 3, 4, 6, 8), (10, 100, 1000, 8142), (32, 64, 96))
    with freed_memory_kept():  # as in training
        parts = [
            f"{machine()}; steps in {'bfloat16' if fast_bfloat16('cpu') else 'float32'}",
            grown(f"experts (B = {rows})", {f"K = {k}": step_of(k, 100, sides[0], rows, depth) for k in experts}, chosen.rounds),
            grown("classes (K = 3)", {f"C = {c}": step_of(3, c, sides[0], rows, depth) for c in classes}, chosen.rounds),
            grown("side (K = 3)", {f"{s} px": step_of(3, 100, s, max(2, rows // 4), depth) for s in sides}, chosen.rounds),
        ]
    header = "| pictures in lists | parts made: s, wall | processor | batch asked for: s, wall | processor | MiB of imports | peak, + MiB |"
    lines = [header, "|---|---|---|---|---|---|---|"]
    for count in (2000,) if chosen.quick else (10_000, 100_000, 1_000_000):
        *seconds, imports, more = start_up(count)
        lines.append(f"| {count:,} | {' | '.join(f'{value:.2f}' for value in seconds)} | {imports:.0f} | {more:.0f} |")
    return "\n\n".join([*parts, "\n".join(lines), f"Peak memory of the steps above: {peak_mib():.0f} MiB."])


if __name__ == "__main__":
    print(main())
