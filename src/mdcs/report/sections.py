"""The figures and tables of the page, each a function of the runs it shows: HTML text, every name escaped."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from mdcs.report import svg
from mdcs.report.contents import GROUPS, MEASURES, Contents, Row

Runs = Mapping[str, Contents]  # by the name that the page gives each

ANSWERS = {
    "average": "mean of the experts",
    "known_prior": "corrected for the known frequencies",
    "em": "frequencies estimated by EM",
    "bbse": "frequencies estimated by BBSE",
    "agreement": "experts weighted by agreement of two views",
}
PAIRWISE = {  # columns of the diversity table: heading, factor, decimals
    "disagreement": ("pairs disagree, %", 100, 1),
    "kappa": ("Cohen's κ", 1, 2),
    "kl": ("KL, nats", 1, 2),
    "js": ("JS, nats", 1, 3),
    "recall_sd": ("s.d. of class recall, %", 100, 1),
    "oracle_gap": ("any expert right − ensemble, points", 100, 1),
}
SMALL_SHARES = ("difference of the experts in %", "pairs that disagree in %")  # curves whose axis ends where they do
MEANING = {  # said below the training curves
    "loss": " Nats; the parts before their weights.",
    "confident pictures in %": " Training pictures whose weak view an expert gets right (groups: mean over experts); these are distilled.",
    "accuracy in %": " Of the ensemble; in training, on the augmented views.",
    "difference of the experts in %": " Means over pairs of experts; s.d. over the experts, mean over classes; points of accuracy.",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction for people."""
    return "n/a" if value is None else f"{100 * value:.{digits}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, main: int = -1, text: Sequence[int] = ()) -> str:
    """An HTML table: the first cell of a row names it; `rows` are HTML, heads and caption are not. Row `main` is stressed."""
    style = {i: ' class="text"' for i in text}
    head = "".join(f'<th scope="col"{style.get(i, "")}>{escape(name)}</th>' for i, name in enumerate(heads))
    lines = []
    for r, (first, *others) in enumerate(rows):
        cells = "".join(f"<td{style.get(i, '')}>{cell}</td>" for i, cell in enumerate(others, 1))
        lines.append(f'<tr{" class=main" if r == main else ""}><th scope="row">{first}</th>{cells}</tr>')
    label = escape(caption.split(".")[0])
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><caption><span>{escape(caption)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def legend(names: Mapping[int, str]) -> str:
    """Colours and what they stand for."""
    swatch = '<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{}" width="10" height="10"/></svg>{}</li>'
    return f'<ul class="legend">{"".join(swatch.format(svg.series(j), escape(name)) for j, name in names.items())}</ul>'


def figures(runs: Runs, draw: Callable[[str, str, Contents], str], caption: Callable[[Contents], str]) -> str:
    """One figure a run, side by side; several runs are named above. `draw` gets a key for ids, a suffix for titles, and the run."""
    parts = []
    for r, (name, run) in enumerate(runs.items()):
        heading, suffix = (f"<h3>{escape(name)}</h3>", f", {name}") if len(runs) > 1 else ("", "")
        parts.append(f"<figure>{heading}{draw(f'r{r}', suffix, run)}<figcaption>{escape(caption(run))}</figcaption></figure>")
    return f'<div class="grid">{"".join(parts)}</div>'


def summary(runs: Runs) -> str:
    """Accuracies and calibration of each run's ensemble and experts."""
    heads = ["accuracy in %", "overall", *GROUPS, "balanced", "ECE"]
    parts = []
    for name, run in runs.items():
        sizes, rows = run.group_sizes(), []
        named = [*heads[:2], *(f"{group} ({sizes[group]} classes)" for group in GROUPS), *heads[5:]]
        for row in run.measure_rows():
            cells = [percent(row[key]) for key in MEASURES]
            for i, key in enumerate(MEASURES):
                bounds = row.get("ci", {}).get(key)
                if bounds and row[key] is not None:
                    cells[i] += f' <span class="ci">[{percent(bounds[0])}, {percent(bounds[1])}]</span>'
            rows.append([row["of"], *cells])
        words = "In brackets 95 % bootstrap intervals over pictures. " if run.scores.get("ci") else ""
        seen, absent = f"A group's accuracy is the mean over its classes with {run.split} pictures", len(run.classes) - sum(sizes.values())
        seen += f"; {absent} {'class has' if absent == 1 else 'classes have'} none" if absent else ""
        caption = f"{run.provenance}. {words}{seen}. ECE: calibration error, 15 bins."
        parts.append((f"<h3>{escape(name)}</h3>" if len(runs) > 1 else "") + table(named, rows, caption, main=0))
    if len(runs) > 1:
        rows = [[escape(name), *(percent(run.scores.get(key)) for key in MEASURES)] for name, run in runs.items()]
        notes = "; ".join(f"{name}: {run.provenance}" for name, run in runs.items())
        parts.insert(0, table(["ensemble, in %", *heads[1:]], rows, f"{notes}."))
        if len({run.scores.get("test_set_sha256") for run in runs.values()}) > 1:
            parts.insert(0, "<p>The runs were judged on different pictures (test_set_sha256 differs): do not compare their numbers.</p>")
    return "".join(parts)


def by_frequency(runs: Runs) -> str:
    """Accuracy of the ensemble against training pictures, a dot a class."""

    def draw(key: str, suffix: str, run: Contents) -> str:
        of_class = run.class_rows()
        rows = [of_class[c] for c in dots(run)]
        if not rows:
            return f"<p>n/a: no class has both training and {run.split} pictures.</p>"
        points = [(row["train_count"], 100 * row["accuracy"]) for row in rows]
        few, many = run.scores.get("accuracy_few"), run.scores.get("accuracy_many")
        said = f"{len(points)} classes. Mean over many-shot classes {percent(many)} %, over few-shot classes {percent(few)} %."
        title = f"Accuracy against class frequency{suffix}"
        return svg.scatter(f"{key}-frequency", title, said, points, ("training pictures of the class", "accuracy in %"))

    def caption(run: Contents) -> str:
        line = " The line: means of twelfths of the classes." if len(dots(run)) >= svg.MANY else ""
        return f"Ensemble; {run.provenance}.{line} Point at a dot for its class; a click shows it in the table."

    return figures(runs, draw, caption)


def dots(run: Contents) -> list[int]:
    """The classes drawn as dots, from rare to frequent."""
    counts = run.classes.counts.tolist()
    return sorted((c for c, n in enumerate(run.support_C.tolist()) if n and counts[c]), key=lambda c: (counts[c], c))


def by_group(runs: Runs) -> str:
    """Many, medium and few of the ensemble and each expert."""

    def draw(key: str, suffix: str, run: Contents) -> str:
        sizes, rows = run.group_sizes(), run.measure_rows()
        groups = {f"{group} ({sizes[group]})": [row[f"accuracy_{group}"] for row in rows] for group in GROUPS}
        values = {name: [None if value is None else 100 * value for value in of] for name, of in groups.items()}
        said = "; ".join(f"{row['of']}: " + ", ".join(f"{group} {percent(row[f'accuracy_{group}'])}" for group in GROUPS) for row in rows)
        title = f"Accuracy by shot group{suffix}"
        return legend(dict(enumerate(run.answerers))) + svg.bars(f"{key}-groups", title, said, values, "accuracy in %")

    return figures(runs, draw, lambda run: f"Mean over the group's classes; {run.provenance}.")


def diversity(runs: Runs) -> str:
    """How often experts agree, and by how much they differ."""

    def draw(key: str, suffix: str, run: Contents) -> str:
        names, agreement = run.answerers[1:], run.diversity.table()["agreement"]
        if run.num_experts < 2 or agreement is None:
            return "<p>n/a: a single expert.</p>"
        title = f"Agreement of the experts in per cent of the pictures{suffix}"
        return svg.matrix(f"{key}-agreement", title, said(names, agreement), names, agreement)

    def draw_features(key: str, suffix: str, run: Contents) -> str:
        if (cka := run.cka) is None:
            return "<p>n/a: no features stored.</p>"
        title, names = f"Similarity of the experts' features in per cent{suffix}", run.answerers[1:]
        return svg.matrix(f"{key}-features", title, said(names, cka), names, cka)

    def said(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
        return "; ".join(f"{names[j]}: " + ", ".join(percent(value, 0) for value in row) for j, row in enumerate(matrix))

    parts = [figures(runs, draw, lambda run: f"Share of pictures with the same answer, in %; {run.provenance}.")]
    if any(run.cka for run in runs.values()):
        words = "Linear centred kernel alignment of the experts' features, in %: 100 where one is the other, rotated and scaled; "
        parts.append(figures(runs, draw_features, lambda run: words + f"{run.provenance}."))
    for name, run in runs.items():
        if run.num_experts < 2:
            continue
        whole = run.diversity.table()
        rows = []
        for group, values in {"all": whole, **whole["groups"]}.items():
            cells = []
            for key, (_, scale, digits) in PAIRWISE.items():
                value = (values or {}).get(key)
                cells.append("n/a" if value is None else f"{scale * value:.{digits}f}")
            rows.append([group, *cells, " / ".join(map(str, values["sole_best"])) if values else "n/a"])
        heads = ["pictures", *(heading for heading, _, _ in PAIRWISE.values()), "classes where expert 1 / 2 / ... alone is best"]
        caption = f"How the experts differ{', ' + name if len(runs) > 1 else ''}. {run.provenance}; means over pairs of experts. "
        parts.append(table(heads, rows, caption + "S.d. of class recall: over the experts, mean over classes; our measure of diversity."))
    return "".join(parts)


def calibration(runs: Runs) -> str:
    """Reliability diagram."""

    def draw(key: str, suffix: str, run: Contents) -> str:
        bins = run.reliability()
        filled = [row for row in bins if row["count"]]
        words = [f"confidence {percent(b['confidence'], 0)}: accuracy {percent(b['accuracy'], 0)}, n = {b['count']}" for b in filled]
        return svg.reliability(f"{key}-reliability", f"Reliability of the confidence{suffix}", "; ".join(words), bins)

    def caption(run: Contents) -> str:
        words = "A dot's area grows with the pictures of its bin; on the dashed line confidence is right."
        return f"ECE {percent(run.scores['ece'])} %; {run.provenance}. {words}"

    return figures(runs, draw, caption)


def agnostic(runs: Runs) -> str:
    """Accuracy where classes are as frequent as in training, equally, or the other way round."""
    if not any(run.agnostic() for run in runs.values()):
        return "<p>Not computed: scores.json has no results for other class frequencies. <code>mdcs evaluate run=DIR</code> adds them.</p>"

    rows_of_all = [row for run in runs.values() for row in run.agnostic() if row["name"] != "dirichlet"]
    # One axis for all runs, so that they can be compared by eye.
    lowest = 100 * min((row[name] for row in rows_of_all for name in ANSWERS if row.get(name) is not None), default=0.0)

    def draw(key: str, suffix: str, run: Contents) -> str:
        rows = [row for row in run.agnostic() if row["name"] != "dirichlet"]
        known = [name for name in ANSWERS if any(row.get(name) is not None for row in rows)]
        if not rows or not known:
            return "<p>n/a</p>"
        curves = [(j, [None if row.get(name) is None else 100 * row[name] for row in rows]) for j, name in enumerate(known)]
        names = [short(row) for row in rows]
        said = "; ".join(f"{row['name']}: {percent(row.get('average'))}" for row in rows)
        title = f"Accuracy where classes are otherwise frequent{suffix}"
        drawn = svg.categories(f"{key}-agnostic", title, said, names, curves, lowest)
        return legend({j: ANSWERS[name] for j, name in enumerate(known)}) + drawn

    def caption(run: Contents) -> str:
        names = [row["name"] for row in run.agnostic()]
        ratios = [name.removeprefix("forward-") for name in names if name.startswith("forward-")]
        if not ratios:
            return f"{run.provenance}."
        words = f"F{ratios[0]}: the class most frequent in training is {ratios[0]} times as frequent as the rarest; "
        return f"{words}U: all are equally frequent; B{ratios[0]}: F{ratios[0]} reversed. {run.provenance}, weighted."

    return figures(runs, draw, caption)


def short(row: Row) -> str:
    """A test distribution's name for an axis: forward-50 is F50."""
    name: str = row["name"]
    return name.replace("forward-", "F").replace("backward-", "B").replace("uniform", "U")


def training(runs: Runs) -> str:
    """Curves of metrics.csv, a panel for each kind."""
    parts = []
    for r, (name, run) in enumerate(runs.items()):
        panels = ""
        for number, (panel, curves) in enumerate(run.curves().items()):
            words = "; ".join(f"{column} ends at {points[-1][1]:.4g} in epoch {points[-1][0]:.0f}" for column, points in curves.items())
            quantity = panel.partition(", ")[0]
            y = svg.y_axis(0, 100) if "%" in quantity and quantity not in SMALL_SHARES else None
            title = panel[0].upper() + panel[1:]
            key, labels = f"r{r}-curves-{number}", ("epoch", quantity)
            drawn = svg.lines(key, f"{title} over epochs", words, list(enumerate(curves.values(), 1)), labels, y)
            caption = f"{title}; seed {run.config['seed']}.{MEANING.get(quantity, '')}"
            panels += f"<figure>{legend(dict(enumerate(curves, 1)))}{drawn}<figcaption>{escape(caption)}</figcaption></figure>"
        heading = f"<h3>{escape(name)}</h3>" if len(runs) > 1 else ""
        parts.append(heading + (f'<div class="grid three">{panels}</div>' if panels else "<p>There is no metrics.csv.</p>"))
    return "".join(parts)


def confusions(runs: Runs) -> str:
    """The most frequent wrong answers."""
    parts = []
    for name, run in runs.items():
        support = dict(zip(run.classes.names, run.support_C.tolist(), strict=True))
        rows = []
        for row in run.confused():
            share = row["count"] / max(support.get(row["true"], 0), 1)
            rows.append([escape(row["true"]), escape(row["predicted"]), str(row["count"]), percent(share, 0)])
        caption = f"Most frequent wrong answers of the ensemble{', ' + name if len(runs) > 1 else ''}. {run.provenance}."
        heads = ["true class", "answered", "pictures", "% of the class"]
        parts.append(table(heads, rows, caption, text=(1,)) if rows else "<p>No wrong answer.</p>")
    return f'<div class="grid">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def cost(runs: Runs) -> str:
    """What each run took, and with which versions."""
    keys = {
        "parameters": "parameters",
        "macs_per_picture": "multiply-adds a picture",
        "views": "views",
        "train_pictures": "training pictures",
        "epochs": "epochs",
        "wall_seconds": "training, s",
        "cpu_hours": "CPU hours",
        "gpu_hours": "GPU hours",
        "images_per_second": "pictures/s",
        "peak_memory_mib": "peak memory, MiB",
        "peak_device_memory_mib": "peak device memory, MiB",
        "device": "device",
        "precision": "precision",
        "threads": "threads",
        "world_size": "processes",
        "seed": "seed",
        "git_commit": "commit",
    }
    values = [{**run.scores, **{f"version of {name}": v for name, v in run.scores.get("versions", {}).items()}} for run in runs.values()]
    names = keys | {key: key for of in values for key in of if key.startswith("version of ")}
    known = {key: title for key, title in names.items() if any(of.get(key) is not None for of in values)}
    rows = [[escape(title), *(told(of.get(key)) for of in values)] for key, title in known.items()]
    return table(["", *(runs if len(runs) > 1 else ["this run"])], rows, "Cost and versions.", text=range(1, len(runs) + 1))


def told(value: Any) -> str:
    """A fact for people, escaped."""
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else escape(str(value))
