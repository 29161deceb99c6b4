"""Does consistency self-distillation lower the variance? Bias and variance on digits-LT over 20 training subsets drawn anew.

    python benchmarks/variance.py --runs runs/variance      # 80 runs of 120 epochs, two at a time on one thread each: about an hour

Each run is `mdcs train` in its own process; finished runs are kept and interrupted ones resumed, so the call can be repeated. `seed` and
`data.subset_seed` move together: run m of every method sees the same pictures, so differences between methods are paired. The 600 test
pictures are the same in all. Every method sees both views. The last epoch is scored; nothing is chosen on the test split.

Two kinds of intervals, since there are two things that could have come out otherwise: other test pictures (bootstrap over pictures, given
these runs) and other training subsets (jackknife over the runs, given these pictures). Writes benchmarks/results/variance.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from mdcs.analysis.bias_variance import STATISTICS, decompose, group_rows
from mdcs.evaluation.predictions import Predictions, classes_from_json
from mdcs.types import Classes
from runs import BOTH, train_all

METHODS = {
    "CE, K = 1": ["loss=ce", BOTH, "model.num_experts=1"],
    "balanced softmax, K = 3": ["loss=balanced_softmax", BOTH],
    "MDCS without consistency": ["loss=mdcs", "loss.alpha=0"],
    "MDCS": ["loss=mdcs"],
}
PAIRS = [("MDCS", "MDCS without consistency"), ("MDCS", "balanced softmax, K = 3"), ("MDCS", "CE, K = 1")]
SLUGS = dict(zip(METHODS, ("ce", "bs3", "mdcs_alpha0", "mdcs"), strict=True))
GROUPS = ("all", "many", "medium", "few")
UNITS = {"error": 100, "bias": 100, "variance": 100, "disagreement": 100, "nll": 1, "kl_bias": 1, "kl_variance": 1}


def means(runs: Sequence[Predictions], classes: Classes) -> dict[str, np.ndarray]:
    """(group, statistic) of some runs, for the ensemble and each expert."""
    tables = {of: group_rows(values, runs[0].labels, classes, resamples=1) for of, values in decompose(runs, classes).items()}
    return {of: np.stack([table[group][:, 0] for group in GROUPS]) for of, table in tables.items()}


def left_out(runs: Sequence[Predictions], classes: Classes) -> dict[str, np.ndarray]:
    """(run, group, statistic): `means` without each run."""
    without = [means([run for other, run in enumerate(runs) if other != m], classes) for m in range(len(runs))]
    return {of: np.stack([each[of] for each in without]) for of in without[0]}


def jackknife(without_M: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % t interval from leave-one-run-out values (Tukey 1958)."""
    num_runs = len(without_M)
    error = np.sqrt((num_runs - 1) / num_runs * ((without_M - without_M.mean(0)) ** 2).sum(0))
    half: np.ndarray = stats.t.ppf(0.975, num_runs - 1) * error
    return half


def cell(mean: float, scale: int, bounds: Sequence[float], half: float | None, signed: bool = False) -> str:
    """A number with its interval over pictures, and ± that over runs."""
    digits, sign = (1 if scale == 100 else 3), "+" if signed else ""
    text = f"{scale * mean:{sign}.{digits}f} [{', '.join(f'{scale * bound:{sign}.{digits}f}' for bound in bounds)}]"
    return text if half is None else f"{text} ± {scale * half:.{digits}f}"


def rows_of(name: str, table: dict, half: np.ndarray | None, signed: bool = False) -> list[str]:
    """Lines of a table: one a group."""
    lines = []
    for g, group in enumerate(GROUPS):
        cells = []
        for v, statistic in enumerate(STATISTICS):
            mean, *bounds = table[group][v]
            cells.append(cell(mean, UNITS[statistic], bounds, None if half is None else half[g, v], signed))
        lines.append(f"| {name} | {group} | " + " | ".join(cells) + " |")
    return lines


def tables(runs: dict[str, list[Predictions]], classes: Classes) -> list[str]:
    """The tables: ensembles, paired differences of ensembles and of single experts, single experts."""
    values = {method: decompose(of, classes) for method, of in runs.items()}
    labels = runs["MDCS"][0].labels
    without = {method: left_out(of, classes) for method, of in runs.items()} if len(runs["MDCS"]) > 2 else {}

    def difference(one: str, other: str, of: str) -> list[str]:
        half = jackknife(without[one][of] - without[other][of]) if without else None
        table = group_rows(values[one][of] - values[other][of], labels, classes)
        return rows_of(f"{one} − {other}" + ("" if of == "ensemble" else f", {of}"), table, half, signed=True)

    units = " | ".join(f"{name.replace('_', ' ')}, {'%' if scale == 100 else 'nats'}" for name, scale in UNITS.items())
    head = [f"| | classes | {units} |", "|" + "---|" * (len(UNITS) + 2)]
    lines = ["## Ensembles", "", *head]
    for method, of in values.items():
        half = jackknife(without[method]["ensemble"]) if without else None
        lines += rows_of(method, group_rows(of["ensemble"], labels, classes), half)
    lines += ["", "## Paired differences of the ensembles", "", *head]
    lines += [row for pair in PAIRS for row in difference(*pair, "ensemble")]
    lines += ["", "## Paired differences of single experts", "", *head]
    lines += [row for expert in list(values["MDCS"])[1:] for row in difference(*PAIRS[0], expert)]
    lines += ["", "## Single experts", "", *head]
    for method, of in values.items():
        for expert in list(of)[1:] if len(of) > 2 else []:
            lines += rows_of(f"{method}, {expert}", group_rows(of[expert], labels, classes), None)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/variance"), help="where the runs are kept")
    parser.add_argument("--subsets", type=int, default=20, help="M, runs of each method")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "variance.md")
    arguments = parser.parse_args()
    wanted = {SLUGS[method]: [*words, "data=digits", f"trainer.max_epochs={arguments.epochs}"] for method, words in METHODS.items()}
    subsets = range(arguments.subsets)
    scores = train_all(wanted, subsets, arguments.runs, arguments.workers)
    epochs = {known["epochs"] for known in scores.values()}
    if epochs != {arguments.epochs}:
        sys.exit(f"{arguments.runs} holds runs of {sorted(epochs)} epochs, asked for {arguments.epochs}: choose another --runs")

    known = scores["mdcs", 0]
    classes = classes_from_json(arguments.runs / "mdcs-0" / "classes.json")
    runs = {
        method: [Predictions.read(arguments.runs / f"{slug}-{number}" / "predictions" / "test") for number in subsets]
        for method, slug in SLUGS.items()
    }
    lines = [
        f"# Bias and variance on digits-LT: M = {arguments.subsets} subsets drawn anew, {known['n']} test pictures",
        "",
        f"`python benchmarks/variance.py --subsets {arguments.subsets} --epochs {arguments.epochs}`, commit {known['git_commit']}, "
        f"torch {known['versions']['torch']}, {known['device']}, one thread a run, 2 views, last epoch.",
        "",
        "[ ] 95 % bootstrap interval over test pictures, given these runs; ± half of the 95 % jackknife interval over runs, given these "
        "pictures (rough for bias and variance, since a mode jumps). Definitions: `mdcs.analysis.bias_variance.decompose`. "
        f"Many-, medium- and few-shot: more than {classes.many_above} training pictures, between, fewer than {classes.few_below}.",
        "",
        *tables(runs, classes),
    ]
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(arguments.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
