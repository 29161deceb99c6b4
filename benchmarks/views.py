"""How fast both views of a batch are made: batched with randomness per picture, and one picture after the other with Pillow.

    OMP_NUM_THREADS=1 python benchmarks/views.py             # minutes
    OMP_NUM_THREADS=1 python benchmarks/views.py --quick     # a few small batches: seconds, for the tests

One process, one thread, the paths in turn (A B C A B C), medians of the ratios of each round. CPU seconds count, for other work on the
machine changes those less; wall seconds stand beside them. "Published" is Pillow through torchvision's transforms, as the published code
does it; "lean" is Pillow with as little around it as Python allows. Pictures are in memory: random smooth ones, of the sizes of CIFAR's
and ImageNet's.

Views do not depend on the batch, so training makes those of several steps at once: the path "at once", with as many steps as training
takes. On an accelerator every operation is a kernel to launch. There each operation is made for every picture, so that the host waits for
nothing. The second table counts the operations of a step, alone and as one of those that training makes at once.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms

import plain_views
from decode import photograph
from mdcs.augment import ops
from mdcs.augment.policies import CifarStrong, CifarWeak, ImageNetStrong, ImageNetWeak
from mdcs.augment.views import Augment
from mdcs.data.module import PIXELS_AT_ONCE, PIXELS_AT_ONCE_ON_ACCELERATORS
from mdcs.training.memory import freed_memory_kept
from mdcs.types import Batch, Part

VIEWS = ("weak", "strong")
Seconds = tuple[float, float]  # of the CPU, of the clock


def published_cifar() -> plain_views.Views:
    """Both views of a CIFAR picture through torchvision's transforms."""
    begin = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    normalise = transforms.Normalize(*plain_views.CIFAR)
    weak = transforms.Compose([*begin, transforms.RandomRotation(15), transforms.ToTensor(), normalise])
    strong = transforms.Compose([*begin, plain_views.autoaugment, transforms.ToTensor(), plain_views.cutout, normalise])
    return lambda picture: (weak(picture), strong(picture))


def published_imagenet() -> plain_views.Views:
    """Both views of a large picture, after its crop, through torchvision's transforms."""
    begin = [transforms.RandomHorizontalFlip(), transforms.ColorJitter(0.4, 0.4, 0.4, 0)]
    end = [transforms.ToTensor(), transforms.Normalize(*plain_views.IMAGENET)]
    weak, strong = transforms.Compose([*begin, *end]), transforms.Compose([*begin, plain_views.randaugment, *end])
    return lambda picture: (weak(picture), strong(picture))


def one_by_one(views: plain_views.Views, pictures: np.ndarray) -> Tensor:
    """(2, B, 3, H, W) from (B, H, W, 3) uint8, as a data set and its collation make it."""
    pairs = [views(Image.fromarray(pixels)) for pixels in pictures]
    return torch.stack([torch.stack([pair[view] for pair in pairs]) for view in range(2)])


def cut(batch: Batch, rows: int, steps: int) -> list[Batch]:
    """Batches of `rows` pictures; `steps` = 1: each by itself, otherwise parts of so many that were loaded at once."""
    if steps > 1:
        loaded = cut(batch, rows * steps, 1)
        return [part._replace(part=Part(whole, number)) for whole in loaded for number, part in enumerate(cut(whole, rows, 1))]
    places = [slice(start, start + rows) for start in range(0, len(batch.index), rows)]
    return [Batch(batch.images[:, place], batch.labels[place], batch.index[place]) for place in places]


def made(augment: Augment, batch: Batch, rows: int, steps: int) -> list[Tensor]:
    """The views of each step."""
    return [augment(part, VIEWS, 10, 0).images for part in cut(batch, rows, steps)]


def steps_in_training(batch: Batch, rows: int, on_accelerator: bool) -> int:
    """How many steps training takes at once."""
    pixels = PIXELS_AT_ONCE_ON_ACCELERATORS if on_accelerator else PIXELS_AT_ONCE
    return max(1, pixels // (rows * batch.images[0, 0, 0].numel()))


def augment_of(side: int, num_pictures: int) -> Augment:
    policies = (CifarWeak(), CifarStrong()) if side < 100 else (ImageNetWeak(), ImageNetStrong())
    statistics_of = plain_views.CIFAR if side < 100 else plain_views.IMAGENET
    return Augment(*policies, *statistics_of, num_pictures=num_pictures)


def in_turn(paths: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[Seconds]]:
    """Seconds of each path in each round; the first round warms up and is left out."""
    measured: dict[str, list[Seconds]] = {name: [] for name in paths}
    for number in range(rounds + 1):
        for name, path in paths.items():
            started = time.process_time(), time.perf_counter()
            path()
            if number:
                measured[name].append((time.process_time() - started[0], time.perf_counter() - started[1]))
    return measured


def compared(side: int, rows: int, rounds: int, steps: int) -> list[str]:
    """Rows of the table for batches of `rows` pictures; each round is `steps` batches."""
    count = rows * steps
    pictures = np.stack([np.asarray(photograph(seed % 64, side, side)) for seed in range(count)])
    images_N3HW = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    batch = Batch(images_N3HW[None], torch.arange(count) % 10, torch.arange(count))
    augment = augment_of(side, count)
    published, lean = (published_cifar(), plain_views.cifar()) if side < 100 else (published_imagenet(), plain_views.imagenet())
    paths: dict[str, Callable[[], object]] = {
        "batched": partial(made, augment, batch, rows, 1),
        "published": lambda: [one_by_one(published, pictures[i : i + rows]) for i in range(0, count, rows)],
        "lean": lambda: [one_by_one(lean, pictures[i : i + rows]) for i in range(0, count, rows)],
    }
    if (at_once := min(steps, steps_in_training(batch, rows, False))) > 1:
        paths[f"batched, {at_once} steps at once"] = partial(made, augment, batch, rows, at_once)
    with freed_memory_kept():  # as in training
        measured = in_turn(paths, rounds)
    table = []
    for name, seconds in measured.items():
        cpu, wall = (statistics.median(count / one[kind] for one in seconds) for kind in (0, 1))
        ratios = [
            statistics.median(other[0] / one[0] for one, other in zip(seconds, measured[plain], strict=True))
            for plain in ("published", "lean")
        ]
        table.append(f"| {side} | {rows} | {name} | {cpu:.0f} | {wall:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return table


class Counted(TorchDispatchMode):
    """Counts operations that are not views of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(side: int, rows: int, on_accelerator: bool) -> tuple[int, float, int]:
    """How many operations both views of a batch take by itself, and as one of so many that are made at once."""
    sorts, rows_at_a_time = ops.sorts, ops.rows_at_a_time
    if on_accelerator:
        ops.sorts, ops.rows_at_a_time = lambda images: False, lambda images: len(images)
    try:
        picture = Batch(torch.zeros(1, 1, 3, side, side, dtype=torch.uint8), torch.zeros(1), torch.zeros(1))
        steps = steps_in_training(picture, rows, on_accelerator)
        augment, index = augment_of(side, rows * steps), torch.arange(rows * steps)
        batch = Batch(picture.images.expand(-1, len(index), -1, -1, -1), index % 10, index)
        made(augment, cut(batch, 1, 1)[0], 1, 1)  # makes what is made once
        with Counted() as alone:
            made(augment, cut(batch, rows, 1)[0], rows, 1)
        with Counted() as together:
            made(augment, batch, rows, steps)
    finally:
        ops.sorts, ops.rows_at_a_time = sorts, rows_at_a_time
    return alone.operations, together.operations / steps, steps


def limits() -> str:
    """What this machine does at best with one thread."""

    def best(task: Callable[[], object]) -> float:
        task()
        return min(seconds[0] for seconds in in_turn({"task": task}, 5)["task"])

    flops = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(1024, 1024).to(dtype)
        flops.append(2 * 1024**3 / best(partial(torch.mm, matrix, matrix)) / 1e9)
    source, target = torch.ones(2**24), torch.empty(2**24)
    copied = 2 * source.nbytes / best(partial(target.copy_, source)) / 1e9
    return f"One thread: {flops[0]:.0f} GFLOP/s in float32 and {flops[1]:.0f} in bfloat16 (1024³ products), {copied:.0f} GB/s copied."


def report(cases: Sequence[tuple[int, int, int]], rounds: int) -> str:
    """The tables, in Markdown. `cases`: side, pictures a batch, batches a round."""
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    lines = [
        limits(),
        "",
        "| side | batch | path | pictures per CPU second | per wall second | times published | times lean |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, rows, steps in cases:
        lines += compared(side, rows, rounds, steps)
    lines += ["", "| side | batch | operations a step | alone | at once | steps at once |", "|---|---|---|---|---|---|"]
    for side, rows, _ in cases:
        for way, on_accelerator in (("sorted (CPU)", False), ("nothing waits (accelerator)", True)):
            alone, at_once, steps = operations(side, rows, on_accelerator)
            lines.append(f"| {side} | {rows} | {way} | {alone} | {at_once:.0f} | {steps} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small batches only")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(words)
    cases, rounds = ([(32, 16, 2)], 1) if options.quick else ([(32, 64, 8), (32, 256, 2), (32, 1024, 1), (224, 32, 4)], options.rounds)
    versions = f"Pillow {PIL.__version__}, torch {torch.__version__}, {os.cpu_count()} CPU cores"
    return f"Both views of each picture, normalised. Medians of {rounds} rounds. {versions}.\n\n{report(cases, rounds)}\n"


if __name__ == "__main__":
    print(main())
