"""A training step on a GPU: the plain way, and MDCS with each fast switch by itself and with all of them. Without network or data set.

    python benchmarks/gpu.py                      # all cases, then with torch.compile; writes benchmarks/results/gpu.md
    python benchmarks/gpu.py --only cifar --part eager --minutes 9      # in pieces: the other sections of the file stay

Besides torch, torchvision and Lightning it needs hydra-core, omegaconf and antlr4-python3-runtime: for a machine without network,
`pip install --no-deps --constraint constraints.txt --target vendor` them elsewhere, and set PYTHONPATH=src:vendor.

cifar: ResNet-32, three experts, 64 pictures of 32 pixels, as many pictures in as many classes as CIFAR-100-LT at IF 100. resnet50,
resnext50: three experts of reduced width at 224 pixels, in-memory pictures without random crops. All pictures are random bytes.

The plain way (plain.py, plain_views.py) makes views with Pillow in worker processes, trains in float32 and the usual memory layout, and
reads the loss back in every step; "views given" leaves its pictures out. Every other way is `trainer.fit` as `mdcs train` calls it, views,
meters and Lightning included. Ways take turns, a fit each; a fit's first steps are not timed, nor is its end, and the device is waited for
before the clock is read (gpu_ways.py). "As mdcs train" is what a user gets with `trainer.precision=auto`. Convolutions in float32 use
TF32, torch's default, in all ways. Memory is the peak that a way adds on the device. A way that does not fit, or fails, is said and left
out, and the others go on. The file is written after each turn.
"""

import argparse
import gc
import math
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch

from gpu_ways import Case, Way, fitting, now, plain_way, prepared, random_splits
from mdcs.build import git_commit
from mdcs.data.classes import long_tailed_counts
from mdcs.train import static_facts
from side_by_side import best_rate, machine

RESULTS = Path(__file__).parent / "results" / "gpu.md"
STEPS_OF_400_EPOCHS = 68_000
WORKERS = 4  # of the published code
PARTS = ("eager", "compile")
FIRST = "# Training steps on a GPU\n\n`python benchmarks/gpu.py`, whose first lines say what the ways are.\n"


TAIL = long_tailed_counts(500, 100, 100, "exp")
CASES = {
    "cifar": Case(
        "ResNet-32, K = 3, 64 pictures of 32 px", ("data=cifar100", "model=resnet32"), 32, 64, TAIL, 24, 120, (256, 1024), grouped=True
    ),
    "resnet50": Case(
        "ResNet-50, K = 3, 64 pictures of 224 px",
        ("data=cifar100", "augment=imagenet", "model=resnet50"),
        *(224, 64, [21] * 100, 8, 20, (128, 256, 512)),
    ),
    "resnext50": Case(
        "ResNeXt-50 32x4d, K = 3, 64 pictures of 224 px",
        ("data=cifar100", "augment=imagenet", "model=resnext50"),
        *(224, 64, [21] * 100, 8, 20, (128, 256, 512)),
    ),
}
QUICK = {
    "cifar": Case("tiny, as cifar", ("data=cifar100", "model=resnet8"), 8, 4, [1] * 100, 1, 2, (8,), grouped=True),
    "resnet50": Case(
        "tiny, as resnet50", ("data=cifar100", "augment=imagenet", "model=resnet10", "model.width=[8,8,8,8]"), 40, 2, [1] * 100, 1, 1
    ),
}


AS_TRAINED = "as mdcs train: channels_last, bf16, on the device"
GROUPED, BF16 = ("model.grouped=true",), ("trainer.precision=bf16-mixed",)
EVERYTHING = Way(BF16, channels_last=True, on_device=True)


def eager_ways(case: Case) -> dict[str, Way]:
    """Each switch by itself, then together."""
    ways = {
        "mdcs, no switch": Way(),
        "channels_last": Way(channels_last=True),
        "bf16": Way(BF16),
        "pictures on the device": Way(on_device=True),
        "cuDNN's search (trainer.benchmark)": Way(("trainer.benchmark=true",)),
    }
    if case.grouped:
        ways["grouped experts"] = Way(GROUPED)
    ways[AS_TRAINED] = EVERYTHING
    if case.grouped:
        ways["... and grouped"] = EVERYTHING.and_words(GROUPED)
    return ways


def compiled_ways(case: Case) -> dict[str, Way]:
    """torch.compile by itself, and with everything else. At most 8 networks: of more in one process torch would compile none."""
    ways = {AS_TRAINED: EVERYTHING}
    for mode in ("default", "reduce-overhead"):
        words = (f"model.compile={mode}",)
        ways[f"... and compile={mode}"] = EVERYTHING.and_words(words)
        if case.grouped:
            ways[f"... and grouped, compile={mode}"] = EVERYTHING.and_words((*GROUPED, *words))
        ways[f"compile={mode} alone"] = Way(words)
    return ways


class Measured(NamedTuple):
    seconds: dict[str, list[float]]  # by way and round
    mib: dict[str, int]  # by way, the most of all fits
    failed: dict[str, str]  # by way, why


def take_turns(
    ways: Mapping[str, Callable[[], Callable[[], float]]], rounds: int, warm_up: bool, deadline: float, after: Callable[[Measured], None]
) -> Measured:
    """Each way is made when its first turn comes; `after` gets what is found after each turn, and none begins after the `deadline`.

    A way that fails is left out from then on: a lent machine should not be idle for it.
    """
    found, made = Measured({name: [] for name in ways}, dict.fromkeys(ways, 0), {}), dict[str, Callable[[], float]]()
    for number in range(rounds + warm_up):
        for name in [name for name in ways if name not in found.failed]:
            if time.monotonic() > deadline:
                return found
            try:
                before = fresh_device()
                made[name] = made[name] if name in made else ways[name]()
                seconds = made[name]()
                if torch.cuda.is_available():
                    found.mib[name] = max(found.mib[name], (torch.cuda.max_memory_allocated() - before) >> 20)
            except torch.OutOfMemoryError:
                found.failed[name] = "does not fit"
                made.pop(name, None)
                continue
            except Exception as failure:
                traceback.print_exc()
                found.failed[name] = f"failed: {type(failure).__name__}"
                made.pop(name, None)
                continue
            if number or not warm_up:
                found.seconds[name].append(seconds)
                after(found)
            print(f"{name}: {1e3 * seconds:.3g} ms a step", file=sys.stderr, flush=True)
    return found


def fresh_device() -> int:
    """Bytes in use on the device, whose unused ones are given back."""
    torch.backends.cudnn.benchmark = False  # a Trainer leaves it as trainer.benchmark has set it
    if not torch.cuda.is_available():
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def limits(quick: bool) -> list[str]:
    """What the device does in large matrix products and copies."""
    device, side, repeats = ("cuda", 8192, 10) if torch.cuda.is_available() and not quick else ("cpu", 128, 2)
    lines = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        rate = best_rate(lambda a=one, b=other: (a @ b, now()), 2 * side**3 / 1e12, repeats)  # type: ignore[misc]
        lines.append(f"- matrix products in {name}: {rate:.3g} TFLOP/s")
    block = torch.zeros(side**2, device=device)
    copied = torch.empty_like(block)
    rate = best_rate(lambda: (copied.copy_(block), now()), 8 * block.numel() / 1e9, repeats)
    return [*lines, f"- copies, read and written: {rate:.4g} GB/s"]


def section(
    case: Case, compiled: bool, rounds: int, quick: bool, commit: str | None, deadline: float, write: Callable[[str], None]
) -> bool:
    """`write` the case's part of the file after each turn; whether every way ran or did not fit."""
    torch.compiler.reset()
    splits, workers = random_splits(case), 0 if quick else WORKERS
    ways: dict[str, Callable[[], Callable[[], float]]] = {}
    batches: dict[str, int] = {}
    reference = AS_TRAINED if compiled else f"plain, {workers} workers"
    if not compiled:
        ways[reference] = lambda: plain_way(case, splits, False, workers)
        ways["plain, views given"] = lambda: plain_way(case, splits, True, 0)
    for name, way in (compiled_ways if compiled else eager_ways)(case).items():
        ways[name] = lambda way=way: fitting(case, way, splits, case.batch)  # type: ignore[misc]
    for batch in () if compiled else case.larger:
        # the epoch has fewer steps then
        fewer = case._replace(warm_up=min(case.warm_up, max(1, len(splits.train.labels) // batch // 3)))
        name = f"as mdcs train, {batch} pictures"
        ways[name] = lambda fewer=fewer, batch=batch: fitting(fewer, EVERYTHING, splits, batch)  # type: ignore[misc]
        batches[name] = batch
    macs = static_facts(prepared(case, Way(), splits, case.batch))["macs_per_picture"]
    title, device = case.title + ", torch.compile" * compiled, limits(quick)
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    where = f"{machine()}; pytorch-lightning {pl.__version__}; CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    head = f"{where}{load}; commit {commit}; medians of {rounds} rounds of {case.steps} steps, or as many as an epoch has."

    def tell(found: Measured) -> None:
        times = "times plain" if not compiled else "times as mdcs train"
        lines = [f"| way | ms a step | pictures/s | {times} | TFLOP/s | peak memory, MiB |", "|---|---|---|---|---|---|"]
        for name, seconds in found.seconds.items():
            if seconds and name not in found.failed:
                batch = batches.get(name, case.batch)
                step, rate = statistics.median(seconds), batch / statistics.median(seconds)
                work = 3 * 2 * macs * 2 * rate / 1e12  # forward and backward of two views; a multiply-add is two operations
                pairs = zip(found.seconds[reference], seconds, strict=False)
                ratios = [slow / fast * batch / case.batch for slow, fast in pairs]
                cells = [f"{1e3 * step:.3g}", f"{rate:.0f}", f"{statistics.median(ratios):.2f}" if ratios else "", f"{work:.3g}"]
                lines.append(f"| {' | '.join([name, *cells, f'{found.mib[name]:,}' if found.mib[name] else ''])} |")
            else:
                lines.append(f"| {name} | {found.failed.get(name, 'not yet measured')} | | | | |")
        kept = {name: statistics.median(seconds) for name, seconds in found.seconds.items() if seconds and name not in batches}
        if case.grouped and kept:
            fastest = min(kept, key=kept.__getitem__)
            took = f"{STEPS_OF_400_EPOCHS * kept[fastest] / 60:.1f} minutes"
            lines += ["", f"The 68,000 steps of the published 400 epochs at the speed of the fastest way ({fastest}): {took}."]
        write(f"## {title}\n\n{head}\n\n" + "\n".join([*lines, "", *device]) + "\n")

    found = take_turns(ways, rounds, not quick, deadline, tell)
    if any(found.seconds.values()) or found.failed:
        tell(found)
    return all(reason == "does not fit" for reason in found.failed.values())


def with_section(text: str, new: str) -> str:
    """`text` with the section that has `new`'s title replaced, or with `new` at its end."""
    first, *parts = text.split("\n## ")
    sections = {part.split("\n", 1)[0]: part.rstrip() for part in parts}
    new = new.removeprefix("## ")
    sections[new.split("\n", 1)[0]] = new.rstrip()
    return "\n\n## ".join([first.rstrip(), *sections.values()]) + "\n"


def main(words: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES), action="append", help="this case (again for others)")
    parser.add_argument("--part", choices=PARTS, action="append", help="without torch.compile, or torch.compile, which takes minutes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no turn begins later; what was measured is in the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=git_commit(), help="of the code, where git cannot tell")
    parser.add_argument("--quick", action="store_true", help="tiny, on any machine: whether it runs; writes nothing")
    chosen = parser.parse_args(words)
    deadline = time.monotonic() + 60 * chosen.minutes
    if not torch.cuda.is_available() and not chosen.quick:
        sys.exit("there is no GPU here; --quick tries the script on the processor")
    warnings.filterwarnings("ignore", module="(pytorch_lightning|lightning_fabric)[.]")
    cases = QUICK if chosen.quick else CASES
    text, good = FIRST if chosen.quick or not chosen.output.exists() else chosen.output.read_text(encoding="utf-8"), True

    def write(part: str) -> None:
        nonlocal text
        text = with_section(text, part)
        if not chosen.quick:
            chosen.output.write_text(text, encoding="utf-8")

    for part in chosen.part or (PARTS[:1] if chosen.quick else PARTS):
        for name in [name for name in chosen.only or cases if name in cases]:
            if time.monotonic() > deadline:
                break
            rounds = 1 if chosen.quick else chosen.rounds
            good &= section(cases[name], part == "compile", rounds, chosen.quick, chosen.commit, deadline, write)
    if not good:
        sys.exit(f"{text}\nsome ways failed")
    return text


if __name__ == "__main__":
    print(main())
