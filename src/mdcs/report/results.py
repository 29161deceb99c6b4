"""A finished run as a logger takes it: named numbers, tables and figures, read from the run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mdcs.report.contents import GROUPS, Row, read_contents

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_ENSEMBLE = ("macro_f1", "oracle_accuracy", "mce", "adaptive_ece", "nll", "brier")
COST = (
    *("parameters", "macs_per_picture", "train_pictures", "wall_seconds", "cpu_hours", "gpu_hours", "images_per_second"),
    *("peak_memory_mib", "peak_device_memory_mib"),
)


class Results(NamedTuple):
    """What a finished run has to show."""

    scalars: dict[str, float]
    tables: dict[str, list[Row]]
    figures: "dict[str, Figure]"


def results(folder: Path) -> Results:
    """Of the evaluated run in `folder`.

    scalars  test/acc, test/acc_few, test/ece ..., test/acc_expert_1 ... (val/... where that is the split the run is judged by); the
             diversity of the experts, as test/disagreement, test/kl_few ...; cost/...
    tables   per_class, answerers, diversity, test_distributions, reliability, confused
    figures  those of `mdcs report figures=...`
    """
    from mdcs.report.plots import figures_of
    from mdcs.report.sections import ANSWERS

    run = read_contents(folder)
    of_group = run.diversity.table()
    diversity = [{"pictures": "all"} | flat(of_group)]
    diversity += [{"pictures": group} | flat(values or {}) for group, values in of_group["groups"].items()]
    tables = {
        "per_class": [flat(row) | {f"expert_{k}": value for k, value in enumerate(row["experts"], 1)} for row in run.class_rows()],
        "answerers": [flat(row) for row in run.measure_rows()],
        "diversity": diversity if run.num_experts > 1 else [],
        "test_distributions": [flat(row) for row in run.agnostic()],
        "reliability": [flat(row) for row in run.reliability()],
        "confused": [flat(row) for row in run.confused()],
    }
    kept = {name: rows for name, rows in tables.items() if rows}
    return Results(scalars(run.scores, diversity, run.scores["split"]), kept, figures_of(run, ANSWERS))


def scalars(scores: Mapping[str, Any], diversity: list[Row], split: str) -> dict[str, float]:
    """Named as in metrics.csv: acc, acc_few, acc_expert_1; what a run does not have is left out."""
    values = measures(scores) | {name: scores.get(name) for name in OF_ENSEMBLE}
    for k, expert in enumerate(scores["experts"], 1):
        values |= {f"{name}_expert_{k}": value for name, value in measures(expert).items()}
    for row in diversity if scores["num_experts"] > 1 else []:
        suffix = "" if row["pictures"] == "all" else f"_{row['pictures']}"
        values |= {f"{name}{suffix}": value for name, value in row.items() if name != "pictures"}
    named = {f"{split}/{name}": value for name, value in values.items()} | {f"cost/{name}": scores.get(name) for name in COST}
    return {name: float(value) for name, value in named.items() if value is not None}


def measures(of: Mapping[str, Any]) -> dict[str, float | None]:
    """Accuracies, overall and by group, and the calibration error of one answerer."""
    groups = {f"acc_{group}": of[f"accuracy_{group}"] for group in GROUPS}
    return {"acc": of["accuracy"], **groups, "balanced_acc": of["balanced_accuracy"], "ece": of["ece"]}


def flat(row: Mapping[str, Any]) -> Row:
    """What of a row is one number or word."""
    return {name: value for name, value in row.items() if not isinstance(value, list | Mapping)}
