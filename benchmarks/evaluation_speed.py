"""Time and memory of evaluation from stored predictions, on synthetic logits that lie memory-mapped on disk.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_speed.py            # ImageNet-LT's and iNaturalist's sizes: minutes, 1.2 GB of disk
    python benchmarks/evaluation_speed.py --quick                      # a small one: seconds

Memory is the growth of anonymous memory, sampled every 5 ms: pages of the mapped logits, which the system drops at will, do not count.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdcs.evaluation.agnostic import agnostic
from mdcs.evaluation.predictions import Predictions, stored
from mdcs.evaluation.scores import scores
from mdcs.types import Classes

SIZES = [(50_000, 1000, 3), (24_426, 8142, 3)]
QUICK = [(600, 10, 3), (8_000, 1000, 3)]
LIMIT_MIB = 1024  # besides the stored predictions


def synthetic(folder: Path, num_pictures: int, num_classes: int, num_experts: int) -> Classes:
    """Writes predictions that are often right, of experts who often agree, and yields long-tailed training counts."""
    labels = np.arange(num_pictures) % num_classes
    random = torch.Generator().manual_seed(0)
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float16, (num_pictures, num_experts, num_classes))
    for start in range(0, num_pictures, 500):
        rows = slice(start, start + 500)
        chunk = torch.randn(len(labels[rows]), 1, num_classes, generator=random)
        chunk = 2 * chunk + torch.randn(len(labels[rows]), num_experts, num_classes, generator=random)
        chunk[torch.arange(len(chunk)), :, torch.from_numpy(labels[rows])] += 7
        logits[rows] = stored(chunk)
    logits.flush()
    np.save(folder / "labels.npy", labels)
    np.save(folder / "index.npy", np.arange(num_pictures))
    (folder / "paths.txt").write_text("".join(f"{i}.jpg\n" for i in range(num_pictures)))
    counts = (1000 * 0.005 ** (torch.arange(num_classes) / (num_classes - 1))).long()
    return Classes(tuple(f"class {c}" for c in range(num_classes)), counts)


def anonymous_mib() -> float:
    """This process's memory without mapped files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**10


def measured(task: Callable[[Predictions, Classes], Any], folder: Path, classes: Classes) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and the largest growth of memory in MiB.

    In a process of its own: memory that another task has freed would hide growth.
    """
    predictions = Predictions.read(folder)
    before, done, peak = anonymous_mib(), threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_mib() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, used = time.perf_counter(), time.process_time()
    task(predictions, classes)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    done.set()
    watcher.join()
    return seconds, used, peak[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, numpy {np.__version__}\n")
    print("| N | C | K | | seconds | of the processor | peak growth of memory, MiB |\n|---|---|---|---|---|---|---|")
    for num_pictures, num_classes, num_experts in QUICK if arguments.quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            classes = synthetic(Path(folder), num_pictures, num_classes, num_experts)
            for name, task in {"scores": scores, "test-agnostic": agnostic}.items():
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    seconds, used, mib = fresh.submit(measured, task, Path(folder), classes).result()
                print(
                    f"| {num_pictures:,} | {num_classes:,} | {num_experts} | {name} | {seconds:.1f} | {used:.1f} | {mib:.0f} |", flush=True
                )
                if mib > LIMIT_MIB:
                    raise SystemExit(f"{name} took {mib:.0f} MiB besides the stored predictions, more than {LIMIT_MIB}")


if __name__ == "__main__":
    main()
