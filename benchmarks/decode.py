"""How fast large pictures become views: decoding alone, with both views' crops, as published with Pillow, and from the cache.

    OMP_NUM_THREADS=1 python benchmarks/decode.py            # minutes; --write puts the table into benchmarks/results/decode.md
    python benchmarks/decode.py --quick                      # a few pictures: seconds, for the tests

Synthetic JPEG files of 500x375 pixels, quality 90. One thread, and CPU seconds, so that other work on the machine matters little; the paths
take turns, and the median over the rounds is reported. No file has to come from a disk: all are in the page cache.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torchvision import transforms

from mdcs.augment.policies import ImageNetStrong, ImageNetWeak
from mdcs.data.cache import cached
from mdcs.data.crops import Crop
from mdcs.data.decode import Decoded
from mdcs.data.files import Files
from mdcs.data.paths import Paths
from mdcs.data.splits import Pictures, Splits
from mdcs.data.store import open_store
from mdcs.types import Classes
from plain_views import randaugment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESULTS = Path(__file__).parent / "results" / "decode.md"


def photograph(seed: int, height: int = 375, width: int = 500) -> Image.Image:
    """Noise with the spectrum of photographs, amplitude 1/f in brightness and steeper in colour: about 96 KiB as JPEG of quality 90."""
    noise = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1

    def layer(power: float) -> np.ndarray:
        values = np.fft.irfft2(np.fft.rfft2(noise.standard_normal((height, width))) / frequency**power, (height, width))
        return (values - values.mean()) / values.std()

    light, red, blue = layer(1.1), layer(1.6), layer(1.6)
    colour = np.stack([45 * light + 20 * red + 10 * blue, 45 * light - 12 * red + 10 * blue, 45 * light - 28 * blue], axis=-1)
    return Image.fromarray((colour + 120).clip(0, 255).astype(np.uint8))


def splits_of(folder: Path) -> Splits:
    """All files of a folder as training pictures, decoded when they are asked for."""
    store = open_store(folder)
    picture = Decoded(store, Paths(store.names()))
    positions = np.arange(len(picture.paths))
    labels = torch.from_numpy(positions % 2)
    train = Pictures(Files(picture, positions, Crop()), labels, torch.from_numpy(positions), picture.paths)
    return Splits(train, None, train, Classes.of(labels, ("a", "b")), (1, 1), ())


def files_of(splits: Splits) -> Files:
    assert isinstance(splits.train.images, Files)
    return splits.train.images


def published(folder: Path) -> Callable[[str], tuple[torch.Tensor, torch.Tensor]]:
    """File -> both views as float tensors, as a dataset of the published kind makes them."""
    cut = [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.4, 0.4, 0.4, 0),
    ]
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    weak, strong = transforms.Compose([*cut, *end]), transforms.Compose([*cut, randaugment, *end])

    def views(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        with open(folder / name, "rb") as file:
            picture = Image.open(file).convert("RGB")
        return weak(picture), strong(picture)

    return views


def rates(paths: dict[str, Callable[[int], object]], count: int, rounds: int) -> dict[str, list[float]]:
    """Pictures per CPU second of each path in each round; the first round warms up and is left out."""
    measured: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds + 1):
        seconds = dict.fromkeys(paths, 0.0)
        for row in range(count):
            for name, path in paths.items():  # in turn, so that a busy moment meets all of them
                started = time.process_time()
                path(row)
                seconds[name] += time.process_time() - started
        if number:
            for name, values in measured.items():
                values.append(count / seconds[name])
    return measured


def on_device(rounds: int, batch: int) -> float:
    """Pictures per CPU second of flip, jitter and RandAugment for both views, batched, here on the CPU."""
    images = torch.from_numpy(np.stack([np.asarray(photograph(seed, 224, 224)).transpose(2, 0, 1) for seed in range(batch)]))
    policies = (ImageNetWeak(), ImageNetStrong())
    times = []
    for number in range(rounds + 1):
        uniform = [torch.rand(batch, policy.draws, generator=torch.Generator().manual_seed(number)) for policy in policies]
        started = time.process_time()
        for policy, numbers in zip(policies, uniform, strict=True):
            policy(images, numbers)
        times.append(time.process_time() - started)
    return batch / statistics.median(times[1:])


def report(count: int, rounds: int, per_round: int) -> str:
    """The table, in Markdown."""
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        folder.mkdir()
        for number in range(count):
            photograph(number).save(folder / f"{number:04}.jpg", quality=90)
        file_bytes = sum(path.stat().st_size for path in folder.iterdir()) / count
        plain = splits_of(folder)
        started = time.perf_counter()
        fast = cached(plain, Path(temporary) / "cache")
        build_seconds = time.perf_counter() - started
        cache_bytes = sum(path.stat().st_size for path in (Path(temporary) / "cache").rglob("*") if path.is_file()) / count
        names, pillow = files_of(plain).picture.paths, published(folder)  # type: ignore[attr-defined]

        def both_views(files: Files) -> Callable[[int], torch.Tensor]:
            return lambda row: files.random(torch.tensor([row]), torch.tensor([row]), 0, 0, 2)

        measured = rates(
            {
                "decode only": files_of(plain).picture,
                "decode, a crop for each of two views": both_views(files_of(plain)),
                "Pillow as published: decode, both views to the end": lambda row: pillow(names[row]),
                "from the cache, a crop for each of two views": both_views(files_of(fast)),
            },
            min(count, per_round),
            rounds,
        )
    alone = measured["decode only"]
    lines = ["| path | pictures per CPU second | share of decode only |", "|---|---|---|"]
    for name, values in measured.items():
        share = statistics.median(value / base for value, base in zip(values, alone, strict=True))
        lines.append(f"| {name} | {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f}) | {share:.0%} |")
    colours = on_device(rounds, min(count, 64))
    return "\n".join(
        [
            *lines,
            "",
            "Flip, jitter and RandAugment of both views are batched on the device and come on top of crops; where that is one CPU thread:",
            f"{colours:.0f} pictures per CPU second.",
            "",
            f"Cache: built at {count / build_seconds:.0f} pictures per second of wall time ({count} pictures, {os.cpu_count()} cores),",
            f"{cache_bytes / 1024:.0f} KiB a picture (short side 256); the JPEG files have {file_bytes / 1024:.0f} KiB.",
        ]
    )


def main(words: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few pictures only")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args(words)
    table = report(*((6, 1, 3) if options.quick else (600, options.rounds, 60)))
    versions = f"Pillow {PIL.__version__}, torch {torch.__version__}, {os.cpu_count()} CPU cores"
    text = (
        "# Decoding and cropping large pictures\n\n"
        f"`OMP_NUM_THREADS=1 python benchmarks/decode.py --rounds {options.rounds}`: synthetic 500x375 JPEG, quality 90;\n"
        f"n = 60 pictures a path and round, {options.rounds} rounds, median (smallest to largest). {versions},\n"
        f"no GPU, load average {os.getloadavg()[0]:.1f} at the end.\n\n{table}\n"
    )
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    print(main())
