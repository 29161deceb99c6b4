"""Several finished runs side by side: mean and s.d. over seeds, paired tests, what differs; as CSV, Markdown, LaTeX and figures."""

import csv
import io
import logging
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mdcs.config import runs_of
from mdcs.durable import write_durably
from mdcs.errors import UserError
from mdcs.evaluate import screen
from mdcs.evaluation.comparison import FinishedRun, Method, grouped
from mdcs.evaluation.paired import TESTED, chosen, fairness, require_one_test_set, tests
from mdcs.evaluation.predictions import classes_from_json
from mdcs.grid import Grid, drawn, latex, markdown
from mdcs.output import check_folder

METRICS = {"overall": "accuracy", "many": "accuracy_many", "medium": "accuracy_medium", "few": "accuracy_few", "ECE": "ece", "NLL": "nll"}

LONGEST_NAME = 80  # of a file, in letters

log = logging.getLogger("mdcs")


def compare(runs: list[str], output: str | None = None, reference: str | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Compare finished runs on the same test set; print the tables and write them to the folder `output`, which may not hold another
    comparison unless `overwrite`.

    `runs` are run folders, folders that hold runs (a sweep), or patterns with * and ?; what a pattern or a folder finds unfinished is left
    out and said, what is named must be finished. Runs whose configurations differ only by seed are one method. Each method is tested
    against the one that `reference` names (see `chosen`), and what makes the comparison unfair is noted. Returns what the CSV holds.
    """
    place = Path(output) if output else Path("runs/comparisons") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    check_folder("output", place)
    if (place / "compare.csv").exists() and not overwrite:
        raise UserError(f"output={place} holds a comparison already: choose another folder, or set overwrite=true")
    found, unfinished = runs_of([runs] if isinstance(runs, str) else runs)
    notes = [f"{folder} has not finished and is left out" for folder in unfinished]
    methods, left_out = grouped([FinishedRun.read(folder) for folder in found])
    require_one_test_set(methods)
    base = chosen(methods, reference, lambda run, name: run.folder.resolve() == Path(name).expanduser().resolve())
    tested = tests(methods, base)
    notes += left_out + fairness(methods, base)
    older = [run.folder for method in methods for run in method.runs if "nll" not in run.scores]
    notes += [f"{folder}/scores.json has no NLL; `mdcs evaluate run={folder}` adds it" for folder in older]
    grids = [scores_grid(methods), costs_grid(methods)] + ([tests_grid(tested, base)] if tested else [])
    rows = [figures(method, next((row for row in tested if row["method"] == method.name), None)) for method in methods]
    write(place, grids, notes, rows)
    plot(place, methods)
    for grid in grids:  # after the files, which a reader who closes the pipe early still gets
        screen().print(*drawn(grid, screen().width), sep="\n")
    for note in notes:
        screen().print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    screen().print(f"tables and figures: {place}", highlight=False, soft_wrap=True, markup=False)
    return {"methods": rows, "reference": base.name, "notes": notes}


def figures(method: Method, tested: dict[str, Any] | None) -> dict[str, Any]:
    """One row of compare.csv: accuracies and ECE as fractions, differences to the reference likewise."""
    row: dict[str, Any] = {"method": method.name, "n": len(method.runs), "repeated": method.repeated}
    for key in METRICS.values():
        mean, spread = mean_and_sd(method.values(key))
        row |= {key: mean, f"{key}_sd": spread}
    for key in ("num_experts", "parameters", "macs_per_picture", "train_pictures", "epochs", "views", "checkpoint"):
        row[key] = method.fact(key)
    row |= {"augmentation": method.augmentation, "wall_seconds": method.seconds, "pairs": tested and tested["pairs"]}
    for key in (*TESTED, "pictures"):
        test = (tested or {}).get(key) or {}
        low, high = test.get("interval") or (None, None)
        row |= {f"{key}_difference": test.get("mean"), f"{key}_low": low, f"{key}_high": high}
        row |= {f"{key}_p": test.get("p"), f"{key}_p_holm": test.get("p_holm")}
        row |= {f"{key}_signs": test.get("signs"), f"{key}_unequal": test.get("unequal")} if key in TESTED else {}
    return row | {"runs": " ".join(str(run.folder) for run in method.runs)}


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation with n − 1; None for what the number of values does not allow."""
    if not values:
        return None, None
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None


def scores_grid(methods: Sequence[Method]) -> Grid:
    """Accuracy and ECE in %, NLL in nats."""
    n = methods[0].fact("n")
    title = f"Accuracy and ECE in %, NLL in nats, on the {n:,} pictures of the {methods[0].fact('split')} split: mean ± s.d. over n runs."
    rows = []
    for method in methods:
        cells = [in_words(*mean_and_sd(method.values(key)), scale=1 if key == "nll" else 100) for key in METRICS.values()]
        rows.append((method.name, str(len(method.runs)), *cells))
    return Grid(title, ("method", "n", *METRICS), rows)


def in_words(mean: float | None, spread: float | None, scale: int) -> str:
    """ "81.2 ± 0.4"; without ± for a single run, n/a for an empty group."""
    if mean is None:
        return "n/a"
    digits = 1 if scale == 100 else 3
    return f"{scale * mean:.{digits}f}" + ("" if spread is None else f" ± {scale * spread:.{digits}f}")


def costs_grid(methods: Sequence[Method]) -> Grid:
    """What each method is and costs; what is the same for all stands in the title."""

    def cell(value: Any, form: str = "") -> str:
        return "n/a" if value is None else format(value, form)

    table = []
    for method in methods:
        macs = method.fact("macs_per_picture")
        row = {"K": cell(method.fact("num_experts")), "parameters": cell(method.fact("parameters"), ",")}
        row |= {
            "million MACs": cell(macs and macs / 1e6, ",.1f"),
            "epochs": cell(method.fact("epochs")),
            "views": cell(method.fact("views")),
        }
        row |= {"pictures": cell(method.fact("train_pictures"), ","), "augmentation": method.augmentation}
        row |= {"epoch taken": cell(method.fact("checkpoint")), "drawn anew": method.repeated, "seconds": cell(method.seconds, ".1f")}
        table.append(row)
    alike = [name for name in table[0] if name != "seconds" and len({row[name] for row in table}) == 1]
    title = "What was trained, and its cost; seconds are the median over runs."
    title += f" All have {', '.join(f'{name} {table[0][name]}' for name in alike)}." if alike and len(methods) > 1 else ""
    header = tuple(name for name in table[0] if name not in alike or len(methods) == 1)
    rows = [(method.name, *(row[name] for name in header)) for method, row in zip(methods, table, strict=True)]
    return Grid(title, ("method", *header), rows)


def tests_grid(tested: Sequence[dict[str, Any]], base: Method) -> Grid:
    """Differences to the reference, in points."""
    rows = []
    for row in tested:
        cells = [difference(row[key], signs(row[key])) for key in TESTED]
        rows.append((row["method"], str(row["pairs"]), *cells, difference(row["pictures"], "")))
    title = (
        f"Difference to {base.name} in points [95 % interval], p after Holm's correction over the methods. Over seeds: paired t test, and "
        "how many of the seeds that differ have the sign of the mean; ties count for neither. Over pictures: overall accuracy, paired "
        "bootstrap (for a single pair of runs p is McNemar's exact test)."
    )
    return Grid(title, ("method", "pairs", "overall, seeds", "few, seeds", "ECE, seeds", "overall, pictures"), rows)


def signs(test: dict[str, Any] | None) -> str:
    """ " 8/12": of 13 seeds one is a tie, and 8 of the others have the sign of the mean; " all equal" if all are ties."""
    if test is None or (test["signs"] is None and test["unequal"]):
        return ""
    return f" {test['signs']}/{test['unequal']}" if test["unequal"] else " all equal"


def difference(test: dict[str, Any] | None, signs: str) -> str:
    """ "+2.6 [+0.6, +4.7] 5/5 p = 0.021"; without what one pair of runs does not allow."""
    if test is None:
        return "n/a"
    mean = f"{100 * test['mean']:+.1f}" if test["mean"] else "0.0"
    if "equal" in signs:
        return mean + signs
    interval = "" if test["interval"] is None else " [{:+.1f}, {:+.1f}]".format(*(100 * end for end in test["interval"]))
    p = "" if test["p_holm"] is None else " p < 0.001" if test["p_holm"] < 0.001 else f" p = {test['p_holm']:.3f}"
    return f"{mean}{interval}{signs}{p}"


def write(folder: Path, grids: Sequence[Grid], notes: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """compare.csv, compare.md and compare.tex in `folder`."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    texts: dict[str, Callable[[], str]] = {
        "csv": table.getvalue,
        "md": lambda: "\n\n".join([*map(markdown, grids), *(["\n".join(f"- {note}" for note in notes)] if notes else [])]) + "\n",
        "tex": lambda: (
            "\n\n".join([r"% needs \usepackage{booktabs}", *map(latex, grids), *(["\n".join(f"% {n}" for n in notes)] if notes else [])])
            + "\n"
        ),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            write_durably(folder / f"compare.{suffix}", text())
    except OSError as refusal:
        raise UserError(f"output={folder}: cannot be written to ({refusal.strerror}); choose another folder") from refusal


def plot(folder: Path, methods: Sequence[Method]) -> None:
    """As PNG and SVG: accuracy by shot group; by class frequency, for each method; on other test distributions, if all runs have them."""
    from mdcs.report.plots import accuracy_by_frequency, agnostic_curves, group_bars, save

    n = methods[0].fact("n")
    figures = {"groups": group_bars({method.name: [run.scores for run in method.runs] for method in methods}, n)}
    for method in methods:
        figures[f"frequency-{file_name(method, methods)}"] = accuracy_by_frequency(class_rows(method), n)
    if all("agnostic" in run.scores for method in methods for run in method.runs):
        rows: list[dict[str, Any]] = [{"name": row["name"]} for row in methods[0].fact("agnostic")["sets"]]
        for method in methods:
            sets = [{row["name"]: row["average"] for row in run.scores["agnostic"]["sets"]} for run in method.runs]
            for row in rows:
                known = [of_run[row["name"]] for of_run in sets if row["name"] in of_run]
                row[method.name] = mean_and_sd(known)[0] if len(known) == len(sets) else None
        figures["agnostic"] = agnostic_curves(rows, {method.name: method.name for method in methods}, n)
    for pattern in ("groups.*", "frequency-*", "agnostic.*"):  # of a comparison that was there
        for old in folder.glob(pattern):
            old.unlink()
    for name, figure in figures.items():
        for suffix in (".png", ".svg"):
            save(figure, folder / f"{name}{suffix}")


def file_name(method: Method, methods: Sequence[Method]) -> str:
    """The method's name without what a file system may not like; with its number where that is long or not its own."""
    names = [re.sub(r"[^\w.-]+", "_", other.name).strip("_") for other in methods]
    number = methods.index(method)
    return (
        names[number]
        if len(names[number]) <= LONGEST_NAME and names.count(names[number]) == 1
        else f"{names[number][:LONGEST_NAME]}-{number}"
    )


def class_rows(method: Method) -> list[dict[str, Any]]:
    """Training pictures, shot group and accuracy of each class, means over the runs."""
    rows = []
    for of_class in zip(*(run.scores["per_class"] for run in method.runs), strict=True):
        counts = [row["train_count"] for row in of_class]
        known = [row["accuracy"] for row in of_class if row["accuracy"] is not None]
        rows.append({"train_count": sum(counts) / len(counts), "accuracy": mean_and_sd(known)[0]})
    groups = classes_from_json(method.runs[0].folder / "classes.json").groups
    return [row | {"group": next(name for name, group_C in groups.items() if group_C[c])} for c, row in enumerate(rows)]
