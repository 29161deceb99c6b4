"""Training runs of the benchmarks: each is `mdcs train` in a process of its own, on one thread; finished ones are kept."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BOTH = "loss.views=[weak,strong]"  # the budget that MDCS has: every method sees both views of every picture


def train(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train as the words say, unless `folder` holds the finished run; an interrupted one goes on. Its scores."""
    if not (folder / "scores.json").exists():
        arguments = [f"resume={folder}"] if (folder / "config.yaml").exists() else [*words, f"hydra.run.dir={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", "mdcs", "train", *arguments], env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{folder}: {done.stderr or done.stdout}")
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return scores


def train_all(
    methods: Mapping[str, Sequence[str]], seeds: Sequence[int], place: Path, workers: int = 2
) -> dict[tuple[str, int], dict[str, Any]]:
    """Scores by method and seed, from `place`/<method>-<seed>.

    `seed` and `data.subset_seed` move together, so that run m of every method sees the same pictures and differences are paired.
    """
    jobs = [(name, seed) for seed in seeds for name in methods]

    def one(job: tuple[str, int]) -> dict[str, Any]:
        name, seed = job
        return train([*methods[name], f"seed={seed}", f"data.subset_seed={seed}"], place.absolute() / f"{name}-{seed}")

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(jobs, pool.map(one, jobs), strict=True))
