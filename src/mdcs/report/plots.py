"""Figures for papers and talks: each a function from a table to a matplotlib Figure, without pyplot and without changing its settings."""

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdcs.report.contents import GROUPS, Contents, Row, read_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#0072b2", "#e69f00", "#cc79a7", "#009e73", "#56b4e9", "#d55e00", "#f0e442")  # Okabe and Ito; 0 is the ensemble
SIZE = (5.0, 3.4)  # inches
SUFFIXES = (".png", ".svg", ".pdf")
PANEL_WIDTH = 4.2
PANELS_IN_A_ROW = 3


def colour(number: int) -> str:
    """Of a series; more than eight begin again, without black."""
    return COLOURS[number] if number < len(COLOURS) else COLOURS[1 + (number - 1) % (len(COLOURS) - 1)]


def new_figure(panels: int = 1) -> "tuple[Figure, list[Axes]]":
    """A figure that belongs to nobody else, and its axes."""
    from matplotlib.figure import Figure

    across, rows = min(panels, PANELS_IN_A_ROW), -(-panels // PANELS_IN_A_ROW)
    size = SIZE if panels == 1 else (PANEL_WIDTH * across, SIZE[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = [figure.add_subplot(rows, across, i + 1) for i in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def accuracy_by_frequency(rows: Sequence[Row], n: int, split: str = "test") -> "Figure":
    """Accuracy against training pictures, a dot a class; `rows` as of Contents.class_rows, `n` pictures of `split`."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, (ax,) = new_figure()
    shown = [row for row in rows if row["accuracy"] is not None and row["train_count"]]
    for number, group in enumerate(GROUPS, 1):
        of_group = [row for row in shown if row["group"] == group]
        if of_group:
            x, y = [row["train_count"] for row in of_group], [100 * row["accuracy"] for row in of_group]
            style: dict[str, Any] = {"s": 28 if len(shown) < 200 else 8, "alpha": 0.75, "linewidths": 0, "clip_on": False}
            ax.scatter(x, y, label=f"{group} ({len(of_group)})", color=colour(number), **style)
    ax.set(xscale="log", xlabel="training pictures of the class", ylim=(-3, 103))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:,.12g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylabel(f"{split} accuracy in %, n = {n:,}")
    ax.legend(title="classes", frameon=False)
    return figure


def group_bars(values: Mapping[str, Sequence[Mapping[str, float | None]]], n: int, split: str = "test") -> "Figure":
    """Accuracy in % of each answerer by shot group: bars are means over runs, lines their standard deviations where there are several.

    `values` has for each answerer (or method) one row a run, with accuracy, accuracy_many ... as fractions. "n/a" stands where no run has a
    value.
    """
    import numpy as np

    figure, (ax,) = new_figure()
    keys = {"all": "accuracy"} | {group: f"accuracy_{group}" for group in GROUPS}
    width = 0.8 / len(values)
    for number, (name, runs) in enumerate(values.items()):
        for g, key in enumerate(keys.values()):
            known = [100 * row[key] for row in runs if row[key] is not None]  # type: ignore[operator]
            x = g + width * (number - (len(values) - 1) / 2)
            if not known:
                ax.annotate("n/a", (x, 1), ha="center", fontsize=8)
                continue
            spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
            style: dict[str, Any] = {"capsize": 2, "color": colour(number), "ecolor": "0.4", "label": name if g == 0 else None}
            ax.bar(x, float(np.mean(known)), 0.92 * width, yerr=spread, **style)
    runs_each = sorted({len(runs) for runs in values.values()})
    over = f",\nmean ± s.d. of {' or '.join(map(str, runs_each))} runs" if runs_each[-1] > 1 else ""
    ax.set(xticks=range(len(keys)), xticklabels=list(keys), ylim=(0, 105), xlabel="classes")
    ax.set_ylabel(f"{split} accuracy in %, n = {n:,}{over}", fontsize=9)
    columns = max(1, min(4, 72 // (6 + max(map(len, values)))))  # long names in fewer columns, for which the figure grows
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, -(-len(values) // columns) - 2))
    figure.legend(frameon=False, ncols=columns, loc="outside upper center", fontsize=8)
    return figure


def expert_matrix(matrix: Sequence[Sequence[float]], label: str) -> "Figure":
    """(K, K) values in [0, 1] of pairs of experts, in %."""
    figure, (ax,) = new_figure()
    image = ax.imshow([[100 * value for value in row] for row in matrix], vmin=0, vmax=100, cmap="cividis")
    for j, row in enumerate(matrix):
        for k, value in enumerate(row):
            ax.text(k, j, f"{100 * value:.0f}", ha="center", va="center", color="black" if value > 0.5 else "white")
    names = [str(k) for k in range(1, len(matrix) + 1)]
    ax.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names, xlabel="expert", ylabel="expert")
    figure.colorbar(image, ax=ax, label=label)
    return figure


def reliability_diagram(bins: Sequence[Row], ece: float | None) -> "Figure":
    """Accuracy over confidence; bins as of scores.json."""
    figure, (ax,) = new_figure()
    filled = [(b, row) for b, row in enumerate(bins) if row["count"]]
    width = 100 / len(bins)
    total = sum(row["count"] for _, row in filled)
    ax.bar([(b + 0.5) * width for b, _ in filled], [100 * row["accuracy"] for _, row in filled], 0.94 * width, color=colour(5), alpha=0.5)
    ax.plot([0, 100], [0, 100], color="0.4", linestyle="--", linewidth=1)
    x, y = ([100 * row[key] for _, row in filled] for key in ("confidence", "accuracy"))
    ax.scatter(x, y, s=[12 + 200 * row["count"] / total for _, row in filled], color=colour(0), zorder=3, clip_on=False)
    ax.set(xlim=(0, 100), ylim=(0, 103), xlabel="confidence in %; dots grow with their pictures", ylabel=f"accuracy in %, n = {total:,}")
    ax.set_title("" if ece is None else f"ECE {100 * ece:.1f} %", fontsize=10)
    return figure


def agnostic_curves(sets: Sequence[Row], names: Mapping[str, str], n: int) -> "Figure":
    """Accuracy on test sets of other class frequencies: a line for each way to answer in `names` (key: label) that has values."""
    figure, (ax,) = new_figure()
    rows = [row for row in sets if row["name"] != "dirichlet"]
    for number, (key, label) in enumerate(names.items()):
        points = [(i, 100 * row[key]) for i, row in enumerate(rows) if row.get(key) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour(number), label=label)
    ax.set(xticks=range(len(rows)), xlabel="class frequencies that the test pictures are weighted to", ylabel=f"accuracy in %, n = {n:,}")
    ax.set_xticklabels([row["name"] for row in rows], rotation=45, ha="right", fontsize=8)
    ax.legend(frameon=False, fontsize=8)
    return figure


def training_curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], seed: int) -> "Figure":
    """Columns of metrics.csv over epochs, panels as of Contents.curves: what stands before a comma is the axis, the rest the title."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(max(len(panels), 1))
    for ax, (panel, curves) in zip(axes, panels.items(), strict=False):
        for number, (name, points) in enumerate(curves.items(), 1):
            ax.plot(*zip(*points, strict=True), color=colour(number), label=name, linewidth=1.4)
        quantity, _, of = panel.partition(", ")
        ax.set(xlabel=f"epoch, seed {seed}", ylabel=quantity if "%" in quantity else f"{quantity}, nats")
        ax.set_title(of, fontsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=8)
    return figure


def bias_variance_bars(rows: Sequence[Row], of: str = "ensemble", statistics: Sequence[str] = ("bias", "variance")) -> "Figure":
    """A panel for each of `statistics`: a bar a method with its 95 % interval over pictures, by shot group; rows as of `mdcs analyse`.

    The 0-1 statistics are in %, those that begin with nll or kl in nats.
    """
    figure, axes = new_figure(len(statistics))
    chosen = [row for row in rows if row["of"] == of]
    methods, groups = (list(dict.fromkeys(row[key] for row in chosen)) for key in ("method", "group"))
    for ax, statistic in zip(axes, statistics, strict=True):
        scale, unit = (1, "nats") if statistic.startswith(("nll", "kl")) else (100, "%")
        for row in chosen:
            number = methods.index(row["method"])
            x = groups.index(row["group"]) + 0.8 / len(methods) * (number - (len(methods) - 1) / 2)
            if row[statistic] is None:
                ax.annotate("n/a", (x, 0), ha="center", fontsize=8)
                continue
            mean, lower, upper = (scale * value for value in row[statistic])
            error, first = [[mean - lower], [upper - mean]], row["group"] == groups[0]
            label = f"{row['method']}, {row['runs']} runs" if first else None
            ax.bar(x, mean, 0.74 / len(methods), yerr=error, capsize=2, color=colour(number), ecolor="0.4", label=label)
        sizes = {row["group"]: row["n"] for row in chosen}
        ax.set(
            xticks=range(len(groups)),
            xlabel=f"classes and test pictures, {of}",
        )
        ax.set_ylabel(f"{statistic.replace('_', ' ')} in {unit}\n95 % interval over pictures", fontsize=9)
        ax.set_xticklabels([f"{group}\nn = {sizes[group]}" for group in groups])
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=2, loc="outside upper center", fontsize=8)
    return figure


def save(figure: "Figure", path: Path) -> Path:
    """Write PNG (200 dots an inch), SVG or PDF, as the suffix says: the same bytes for the same figure, text as text in SVG and PDF."""
    import matplotlib

    dated: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": datetime.datetime(2000, 1, 1)}}
    with matplotlib.rc_context({"svg.hashsalt": "mdcs", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(path, dpi=200, metadata=dated.get(path.suffix.lower()))
    return path


def save_figures(folders: Sequence[Path], place: Path) -> list[Path]:
    """All figures of the runs in `folders` as PNG, SVG and PDF in the folder `place`, which is made; several runs also in one figure."""
    from mdcs.report.sections import ANSWERS

    place.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    contents = read_all(folders)
    for name, run in contents.items():
        prefix = re.sub(r"[^\w.-]+", "_", name) + "-" if len(contents) > 1 else ""
        figures |= {prefix + kind: figure for kind, figure in figures_of(run, ANSWERS).items()}
    if len(contents) > 1:
        some = next(iter(contents.values()))
        of_each = {name: [run.measure_rows()[0]] for name, run in contents.items()}
        figures["ensembles"] = group_bars(of_each, len(some.predictions.labels), some.split)
    return [save(figure, place / f"{name}{suffix}") for name, figure in figures.items() for suffix in SUFFIXES]


def figures_of(run: Contents, answers: Mapping[str, str]) -> "dict[str, Figure]":
    """The figures of one run by name; those that it has nothing for are left out."""
    n, rows = len(run.predictions.labels), run.measure_rows()
    agreement, sets, curves = run.diversity.table()["agreement"], run.agnostic(), run.curves()
    figures = {
        "frequency": accuracy_by_frequency(run.class_rows(), n, run.split),
        "experts": group_bars({row["of"]: [row] for row in rows}, n, run.split),
        "reliability": reliability_diagram(run.reliability(), run.scores["ece"]),
    }
    if run.num_experts > 1 and agreement is not None:
        figures["agreement"] = expert_matrix(agreement, f"same answer in % of {n:,} pictures")
    if run.cka is not None:
        figures["features"] = expert_matrix(run.cka, f"linear CKA of features in %, n = {n:,}")
    if sets:
        figures["agnostic"] = agnostic_curves(sets, answers, n)
    if curves:
        figures["training"] = training_curves(curves, run.config["seed"])
    return figures
