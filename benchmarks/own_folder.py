"""A folder of unbalanced pictures as a practitioner has it: `mdcs train data=folder` with its defaults against CE at the same budget.

    python benchmarks/own_folder.py --root cifar100.zip     # 3 seeds x 3 methods: about 75 CPU-minutes

The folder is made from CIFAR-100: ten classes, 200 to 4 training pictures (train/<class>/*.png), all 100 test pictures of each
(test/<class>/*.png). Size, network, augmentation, batch and epochs are what mdcs chooses from the pictures; a tenth of the training
pictures is set aside for validation, and chooses nothing here: the last epoch is scored. CE sees both views, so every method forwards as
many rows.
`seed` and `data.subset_seed` (which pictures are set aside) move together. Finished runs are kept. Writes benchmarks/results/own_folder.md.
"""

import argparse
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from small_sets import BOTH, FIGURES, interval, slug, train

CLASSES = ["bee", "bottle", "bus", "chair", "crab", "dolphin", "fox", "lamp", "rabbit", "tractor"]
COUNTS = [int(200 * 50 ** (-c / 9)) for c in range(10)]
METHODS = {
    "CE, K = 1": ["loss=ce", BOTH, "model.num_experts=1"],
    "CE, K = 3": ["loss=ce", BOTH],
    "MDCS (the default)": [],
}
PAIRS = [("CE, K = 3", "CE, K = 1"), ("MDCS (the default)", "CE, K = 3"), ("MDCS (the default)", "CE, K = 1")]


def make_folder(archive: Path, folder: Path) -> None:
    """Unpack the first `COUNTS[c]` training pictures and all test pictures of each class."""
    with zipfile.ZipFile(archive) as source:
        names = sorted(name for name in source.namelist() if name.endswith(".png"))
        for label, count in zip(CLASSES, COUNTS, strict=True):
            for split, most in (("train", count), ("test", None)):
                (folder / split / label).mkdir(parents=True, exist_ok=True)
                for name in [name for name in names if f"{split}/{label}/" in name][:most]:
                    (folder / split / label / Path(name).name).write_bytes(source.read(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="CIFAR-100 as a zip of train|test/<class>/*.png")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/own_folder"))
    arguments = parser.parse_args()
    runs, seeds = arguments.runs.absolute(), range(arguments.seeds)
    if not (runs / "pictures").exists():
        make_folder(arguments.root, runs / "pictures.part")
        (runs / "pictures.part").rename(runs / "pictures")
    common = ["data=folder", f"data.root={runs / 'pictures'}", "trainer.precision=auto"]
    jobs = [(method, seed) for seed in seeds for method in METHODS]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda job: train([*common, *METHODS[job[0]]], job[1], runs / f"{slug(job[0])}-{job[1]}"), jobs)
        scores = dict(zip(jobs, done, strict=True))

    value = {
        (method, name): 100 * np.array([scores[method, seed][key] for seed in seeds]) for method in METHODS for name, key in FIGURES.items()
    }
    first = scores["MDCS (the default)", 0]
    lines = [
        f"# A folder of ten classes, {COUNTS[0]} to {COUNTS[-1]} pictures: n = {len(seeds)} seeds, {first['n']} test pictures",
        "",
        f"`python benchmarks/own_folder.py`, commit {first['git_commit']}, torch {first['versions']['torch']}, {first['device']}, "
        f"one thread a run, {first['precision']}, {first['epochs']} epochs, 2 views, {first['train_pictures']} training pictures, "
        "last epoch. Groups: many above 100, few below 20 training pictures.",
        "",
        "| method | " + " | ".join(FIGURES) + " | parameters | seconds |",
        "|---|" + "---|" * (len(FIGURES) + 2),
    ]
    for method in METHODS:
        cells = [f"{value[method, name].mean():.1f} ± {value[method, name].std(ddof=1):.1f}" for name in FIGURES]
        seconds = np.median([scores[method, seed]["wall_seconds"] for seed in seeds])
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {scores[method, 0]['parameters']:,} | {seconds:.0f} |")
    lines += [
        "",
        "Paired differences: mean, 95 % interval (t), seeds that agree in sign.",
        "",
        "| | overall | few | ECE |",
        "|---|---|---|---|",
    ]
    for one, other in PAIRS:
        cells = [interval(value[one, name] - value[other, name]) for name in ("overall", "few", "ECE")]
        lines.append(f"| {one} − {other} | " + " | ".join(cells) + " |")
    results = Path(__file__).parent / "results" / "own_folder.md"
    results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(results.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
