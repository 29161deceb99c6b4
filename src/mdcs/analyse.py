"""Diversity of the experts of runs, and bias and variance over runs: from stored predictions to tables."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mdcs.analysis.bias_variance import STATISTICS, decompose, group_rows, over_runs, without_each
from mdcs.analysis.diversity import diversity_of, linear_cka
from mdcs.analysis.methods import by_method, seeds_of, varied
from mdcs.config import read_yaml, runs_of
from mdcs.errors import UserError
from mdcs.evaluation.predictions import Predictions, classes_from_json, judged_by, read_features
from mdcs.output import check_output, complete_or_absent
from mdcs.report.contents import SPLITS
from mdcs.report.plots import SUFFIXES, bias_variance_bars, save
from mdcs.types import Classes

SHOWN = {"disagreement": 100, "kl": 1, "js": 1, "kappa": 1, "recall_sd": 100, "oracle_gap": 100}  # and what they are multiplied by
GROUPS = ("all", "many", "medium", "few")
Rows = list[dict[str, Any]]


def analyse(
    runs: Sequence[str],
    kind: Literal["diversity", "variance"] = "diversity",
    split: Literal["train", "val", "test"] | None = None,
    output: str | None = None,
    figure: str | None = None,
    overwrite: bool = False,
) -> Rows:
    """Tables over `runs` (see `runs_of`), from their stored predictions of `split`; printed, and written to `output` (.csv or .json).

    Without a `split` it is the one that each run is judged by (test, or val where the dataset has no test split), for kind=variance that of
    the first.

    `figure` (.png, .svg or .pdf; kind=variance) shows bias and variance of the ensembles.

    kind=diversity: how the experts of each run differ, by shot group (`DiversitySums.table`).
    kind=variance: bias and variance over runs on subsets drawn anew (`decompose`), and how the ensembles of the methods differ from those
    of the first run's method. Runs that differ in seed and data.subset_seed only are runs of one method; each method needs at least two,
    and all must have been tested on the same pictures. To make them: `mdcs train -m 'data.subset_seed=range(20)'`, which on digits-LT and
    CIFAR-LT leaves the test pictures as they are.
    """
    if output is not None:
        check_output(Path(output), (".csv", ".json"), overwrite)
    if figure is not None:
        if kind != "variance":
            raise UserError(f"figure={figure}: is drawn for kind=variance; `mdcs report run=DIR figures=...` draws a run's diversity")
        check_output(Path(figure), SUFFIXES, overwrite)
    found, unfinished = runs_of(runs)
    for folder in unfinished:
        Console().print(f"note: {folder} has not finished and is left out", highlight=False, soft_wrap=True, markup=False)
    folders = [run_folder(folder) for folder in found]
    if kind == "diversity":
        rows = diversity_rows({folder: split or judged_by(folder) for folder in folders})
    else:
        rows = variance_rows(folders, split or judged_by(folders[0]))
    if output is not None:
        with complete_or_absent(Path(output)) as part:
            write_table(part, rows)
        Console().print(f"table: {output}", highlight=False, soft_wrap=True, markup=False)
    if figure is not None:
        with complete_or_absent(Path(figure)) as part:
            save(bias_variance_bars([row for row in rows if "against" not in row]), part)
        Console().print(f"figure: {figure}", highlight=False, soft_wrap=True, markup=False)
    return rows


def run_folder(folder: Path) -> Path:
    """The folder, if it holds a run."""
    if not (folder / "classes.json").exists():
        raise UserError(f"runs: {folder} is not a run folder, it has no config.yaml with classes.json beside it")
    return folder.resolve()


def stored_predictions(folder: Path, split: str) -> Predictions:
    """Refused with what to do where there are none."""
    place = folder / "predictions" / split
    if not place.exists():
        there = [name for name in SPLITS if (folder / "predictions" / name).exists()]
        others = f" but of {' and '.join(there)}, which split={there[0]} chooses" if there else ""
        makes = f"`mdcs evaluate run={folder} split={split}` makes them if its dataset has that split"
        raise UserError(f"{folder} has no predictions of a {split} split{others}; {makes}")
    return Predictions.read(place)


def diversity_rows(splits: Mapping[Path, str]) -> Rows:
    """One row a run and group, from the predictions of each run's split."""
    rows: Rows = []
    for folder, split in splits.items():
        classes, predictions = classes_from_json(folder / "classes.json"), stored_predictions(folder, split)
        table = diversity_of(predictions, classes).table()
        features_NKD = read_features(folder / "predictions" / split)
        cka = {} if features_NKD is None else {"cka": linear_cka(features_NKD)}
        of_group = {"all": {**table, **cka}} | table["groups"]
        pictures = group_sizes(predictions, classes)
        for group, values in of_group.items():
            kept = {key: value for key, value in (values or {}).items() if key != "groups"}
            rows.append({"run": str(folder), "group": group, "n": pictures[group], **kept})
        show_diversity(folder, rows[-4:], predictions.logits.shape[1], split)
    return rows


def group_sizes(predictions: Predictions, classes: Classes) -> dict[str, int]:
    """Pictures of all classes, and of each group's."""
    sizes = {name: int(group_C.numpy()[predictions.labels].sum()) for name, group_C in classes.groups.items()}
    return {"all": len(predictions.labels), **sizes}


def show_diversity(folder: Path, rows: Rows, num_experts: int, split: str) -> None:
    """One run's table on the screen."""
    table = Table(title=f"{folder.name}: K = {num_experts} experts, {split} split", title_justify="left", title_style="bold")
    titles = (
        "pictures",
        "n",
        "disagreement %",
        "KL nats",
        "JS nats",
        "Cohen's κ",
        "s.d. of recall %",
        "oracle gap %",
        "sole best in classes",
    )
    for title in titles:
        table.add_column(title, justify="left" if title == "pictures" else "right")
    for row in rows:
        numbers = ["n/a" if row.get(key) is None else f"{scale * row[key]:.{1 if scale == 100 else 3}f}" for key, scale in SHOWN.items()]
        table.add_row(row["group"], str(row["n"]), *numbers, " / ".join(map(str, row.get("sole_best") or [])) or "n/a")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    if num_experts < 2:
        console.print("a single expert has no diversity", highlight=False)
    matrices = {"agreement of the experts in %": rows[0].get("agreement"), "CKA of their features in %": rows[0].get("cka")}
    for name, matrix in matrices.items():
        if matrix is not None and num_experts > 1:
            lines = " | ".join(" ".join("n/a" if value is None else f"{100 * value:.1f}" for value in line) for line in matrix)
            console.print(f"{name}: {lines}", highlight=False, soft_wrap=True)


def variance_rows(folders: Sequence[Path], split: str) -> Rows:
    """One row a method, answerer (ensemble, expert k) and group."""
    if len(folders) < 2:
        raise UserError(f"kind=variance: {len(folders)} run, a variance needs at least two that differ in data.subset_seed")
    configs = {folder: read_yaml(folder / "config.yaml") for folder in folders}
    classes = same_classes(folders)
    first, rows = stored_predictions(folders[0], split), Rows()
    ensembles: dict[str, Ensemble] = {}
    for method, members in by_method(configs).items():
        if len(members) < 2:
            raise UserError(
                f"{members[0]} is the only run of its method ({method}): a variance needs at least two that differ in seed and "
                "data.subset_seed only"
            )
        predictions = [stored_predictions(folder, split) for folder in members]
        if predictions[0].sha256() != first.sha256():
            raise UserError(
                f"{members[0]} was tested on other pictures than {folders[0]} (test_set_sha256 differs): compare runs of one test set"
            )
        drawn = varied([configs[folder] for folder in members])
        known, own = {"method": method, "runs": len(members), "varied": drawn}, Rows()
        of_all = decompose(predictions, classes)
        left_out = without_each(predictions, classes) if len(members) > 2 else None
        seeds = tuple(seeds_of(configs[folder]) for folder in members)
        ensembles[method] = Ensemble(of_all["ensemble"], left_out, seeds)
        for answerer, values in of_all.items():
            own += group_table(known | {"of": answerer}, values, left_out if answerer == "ensemble" else None, first, classes)
        show_variance(own, split)
        rows += own
    differences = Rows()
    for method, one in list(ensembles.items())[1:]:
        reference, other = next(iter(ensembles.items()))
        known = {"method": f"{method} − {reference}", "against": reference, "runs": len(one.seeds), "of": "ensemble"}
        paired = one.left_out is not None and other.left_out is not None and one.seeds == other.seeds
        left_out = one.left_out - other.left_out if paired else None  # type: ignore[operator]
        differences += group_table(known, one.values - other.values, left_out, first, classes)
        show_differences(differences[-len(GROUPS) :], split)
    return rows + differences


class Ensemble(NamedTuple):
    """The ensembles of a method's M runs, picture by picture."""

    values: NDArray[np.float64]  # (N, V) STATISTICS
    left_out: NDArray[np.float64] | None  # (M, N, V) without each run
    seeds: tuple[Any, ...]  # (M)


def group_table(
    known: dict[str, Any], values_NV: NDArray[np.float64], left_out_MNV: NDArray[np.float64] | None, first: Predictions, classes: Classes
) -> Rows:
    """A row a group: `known`, n, [mean, lower, upper] of each of the STATISTICS, and what other runs may change under "over_runs"."""
    sizes, halves = group_sizes(first, classes), {} if left_out_MNV is None else over_runs(left_out_MNV, first.labels, classes)
    rows: Rows = []
    for group, table in group_rows(values_NV, first.labels, classes).items():
        numbers = {name: None if table is None else table[v].tolist() for v, name in enumerate(STATISTICS)}
        half = halves.get(group)
        over = None if half is None else dict(zip(STATISTICS, half.tolist(), strict=True))
        rows.append(known | {"group": group, "n": sizes[group]} | numbers | {"over_runs": over})
    return rows


def same_classes(folders: Sequence[Path]) -> Classes:
    """The classes of all runs; refused where names or shot groups differ."""
    first = classes_from_json(folders[0] / "classes.json")
    for folder in folders[1:]:
        other = classes_from_json(folder / "classes.json")
        if other.names != first.names:
            raise UserError(f"{folder} has other classes than {folders[0]}: bias and variance are over runs on the same classes")
        if any((other.groups[name] != first.groups[name]).any() for name in first.groups):
            raise UserError(f"{folder} has other many-, medium- and few-shot classes than {folders[0]}: their averages cannot be compared")
    return first


def show_variance(rows: Rows, split: str) -> None:
    """One method's table on the screen: means, and the interval of the variances."""
    head, experts = rows[0], len({row["of"] for row in rows}) - 1
    title = f"{head['method']}: K = {experts}, M = {head['runs']} runs, {head['varied']} drawn anew"
    caption = (
        f"n {SPLITS[split]} pictures, the same in all runs. Error, bias, variance, disagreement in %, the others in nats. bias: the answer "
        "given most often is wrong; variance: runs that answer otherwise (too few for small M); disagreement: pairs of runs that differ. "
        "[95 % bootstrap interval over pictures, given these runs]"
    )
    titles = ("", "pictures", "n", "error", "bias", "variance", "disagreement", "NLL", "KL bias", "KL variance")
    # A single expert is the ensemble.
    lines = [
        [row["of"] if row["group"] == GROUPS[0] else "", row["group"], str(row["n"])]
        + [in_words(row[name], name, with_interval=name in ("variance", "kl_variance")) for name in STATISTICS]
        for row in rows
        if experts > 1 or row["of"] == "ensemble"
    ]
    show_table(title, caption, titles, lines)


def show_differences(rows: Rows, split: str) -> None:
    """One method's ensembles against the first one's."""
    shown = {"error": "error, points", "disagreement": "disagreement, points", "kl_variance": "KL variance, nats"}
    caption = f"Ensembles, paired by {SPLITS[split]} picture. [95 % bootstrap interval over pictures, given these runs]"
    if any(row["over_runs"] for row in rows):
        caption += " ± half of the 95 % jackknife interval over runs, given these pictures"
    lines = []
    for row in rows:
        half = row["over_runs"] or {}
        numbers = [in_words(row[name], name, with_interval=True, half=half.get(name), signed=True) for name in shown]
        lines.append([row["group"], str(row["n"]), *numbers])
    show_table(rows[0]["method"], caption, ("pictures", "n", *shown.values()), lines)


def show_table(title: str, caption: str, titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """On the screen, or as wide as it needs to be in a file."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", title_style="bold")
    for name in titles:
        table.add_column(name, justify="left" if name in ("", "pictures") else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    Console(width=None if Console().is_terminal else 180).print(table)


def in_words(value: Sequence[float] | None, statistic: str, with_interval: bool, half: float | None = None, signed: bool = False) -> str:
    """A mean in % or nats, with its interval where asked, and what other runs may change where that is known."""
    if value is None:
        return "n/a"
    scale, digits = (1, 3) if statistic.startswith(("nll", "kl")) else (100, 1)
    mean, lower, upper = (f"{scale * number:{'+' if signed else ''}.{digits}f}" for number in value)
    over = "" if half is None else f" ± {scale * half:.{digits}f}"
    return f"{mean} [{lower}, {upper}]{over}" if with_interval else mean


def write_table(path: Path, rows: Rows) -> None:
    """JSON as it is; CSV with a column for each mean and bound (of kind=variance), and lists as JSON texts."""
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
        return
    flat = []
    for row in rows:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            if name in STATISTICS and "over_runs" in row:
                cells |= dict(zip((name, f"{name}_lower", f"{name}_upper"), value or [None] * 3, strict=True))
            elif name == "over_runs":
                cells |= {f"{of}_over_runs": (value or {}).get(of) for of in STATISTICS}
            else:
                cells[name] = json.dumps(value) if isinstance(value, list) else value
        flat.append(cells)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for cells in flat for name in cells)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
