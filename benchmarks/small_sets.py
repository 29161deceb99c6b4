"""CE, balanced softmax and MDCS on two small sets, at equal budget: every method sees both views of every picture.

    python benchmarks/small_sets.py digits                                  # 5 seeds, 180 epochs (1,800 steps): about 10 minutes
    python benchmarks/small_sets.py cifar100_ten --root cifar100.zip        # 3 seeds, 100 epochs (4,400 steps): took 47 minutes

Each run is `mdcs train` in its own process on one thread, two at a time; finished runs are kept, so an interrupted call goes on. `seed` and
`data.subset_seed` move together, so that differences between methods are paired: same subset, same test pictures. The last epoch is
scored; nothing is chosen on the test split. Writes benchmarks/results/<set>.md.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import stats

BOTH = "loss.views=[weak,strong]"
METHODS = {
    "CE, K = 1": ["loss=ce", BOTH, "model.num_experts=1"],
    "CE, K = 3": ["loss=ce", BOTH, "model.num_experts=3"],
    "balanced softmax, K = 1": ["loss=balanced_softmax", BOTH, "model.num_experts=1"],
    "balanced softmax, K = 3": ["loss=balanced_softmax", BOTH, "model.num_experts=3"],
    "MDCS without consistency": ["loss=mdcs", "loss.alpha=0"],
    "MDCS": ["loss=mdcs"],
}
PAIRS = [
    ("balanced softmax, K = 1", "CE, K = 1"),
    ("balanced softmax, K = 3", "balanced softmax, K = 1"),
    ("MDCS without consistency", "balanced softmax, K = 3"),
    ("MDCS", "MDCS without consistency"),
    ("MDCS", "balanced softmax, K = 3"),
    ("MDCS", "CE, K = 1"),
]
FIGURES = {"overall": "accuracy", "many": "accuracy_many", "medium": "accuracy_medium", "few": "accuracy_few", "ECE": "ece"}


def words(which: str, method: str, root: str) -> list[str]:
    """The overrides of one method on one set, without seeds."""
    if which == "digits":
        return [*METHODS[method], "trainer.max_epochs=180"]
    # 5 of 100 epochs, as the published 20 of 400
    ramp = ["loss.warmup_epochs=5"] if method.startswith("MDCS") else []
    return ["experiment=cifar100_ten", f"data.root={root}", *METHODS[method], *ramp]


def slug(method: str) -> str:
    """The method's name as a folder: "CE, K = 1" -> "ce_k_1"."""
    return "_".join(re.findall(r"\w+", method.lower()))


def train(overrides: list[str], seed: int, folder: Path) -> dict:
    """One run in its own process, unless it is finished already; its scores."""
    if not (folder / "scores.json").exists():
        if (folder / "config.yaml").exists():
            arguments = [f"resume={folder}"]
        else:
            arguments = [*overrides, f"seed={seed}", f"data.subset_seed={seed}", f"hydra.run.dir={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "mdcs", "train", *arguments], env=environment, check=True, capture_output=True)
    return json.loads((folder / "scores.json").read_text())


def interval(differences: np.ndarray) -> str:
    """Mean difference with its 95 % t interval, and how many seeds have its sign."""
    n = len(differences)
    half = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5
    agree = int((np.sign(differences) == np.sign(differences.mean())).sum())
    return f"{differences.mean():+.1f} [{differences.mean() - half:+.1f}, {differences.mean() + half:+.1f}] {agree}/{n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["digits", "cifar100_ten"])
    parser.add_argument("--root", default="data", help="CIFAR-100, any layout of data/README.md")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/small_sets"))
    arguments = parser.parse_args()
    seeds = range(arguments.seeds or {"digits": 5, "cifar100_ten": 3}[arguments.which])

    jobs = [(method, seed) for seed in seeds for method in METHODS]
    with ThreadPoolExecutor(2) as pool:
        folder = arguments.runs.absolute() / arguments.which
        scores = dict(
            zip(
                jobs,
                pool.map(
                    lambda job: train(words(arguments.which, job[0], arguments.root), job[1], folder / f"{slug(job[0])}-{job[1]}"),
                    jobs,
                ),
                strict=True,
            )
        )
    value = {
        (method, name): 100 * np.array([scores[method, seed][key] for seed in seeds]) for method in METHODS for name, key in FIGURES.items()
    }
    first = scores["MDCS", 0]
    lines = [
        f"# {arguments.which}: n = {len(seeds)} seeds (training subset and weights drawn anew), {first['n']} test pictures",
        "",
        f"`python benchmarks/small_sets.py {arguments.which}`, commit {first['git_commit']}, torch {first['versions']['torch']}, "
        f"{first['device']}, one thread a run, {first['precision']}, {first['epochs']} epochs, 2 views, last epoch.",
        "",
        "Mean ± standard deviation over the seeds, in %.",
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
    experts = first["experts"]
    lines += ["", "Experts of MDCS (mean over seeds):", "", "| expert | overall | many | medium | few |", "|---|---|---|---|---|"]
    for k in range(len(experts)):
        means = [100 * np.mean([scores["MDCS", seed]["experts"][k][FIGURES[name]] for seed in seeds]) for name in list(FIGURES)[:4]]
        lines.append(f"| {k + 1} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    results = Path(__file__).parent / "results" / f"{arguments.which}.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(results.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
