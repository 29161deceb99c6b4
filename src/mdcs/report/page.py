"""One self-contained HTML page about one run, or several side by side: no network, no library, readable without script."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import yaml

from mdcs.data.splits import Pictures
from mdcs.evaluation.comparison import choice_of, flattened
from mdcs.report import sections
from mdcs.report.class_table import class_table
from mdcs.report.contents import Contents, read_all
from mdcs.report.thumbnails import thumbnails

MOST_PICTURES = 24  # thumbnails on a page


def page(folders: Sequence[Path], pictures: Pictures | None = None) -> str:
    """The HTML text. `pictures` is the scored split of a single run, where it is at hand; else the dataset is read for thumbnails.

    UserError names a folder that is no evaluated run.
    """
    runs = read_all(folders)
    first = next(iter(runs.values()))
    parts = {
        "summary": ("Summary", sections.summary(runs)),
        "frequency": ("Accuracy against class frequency", sections.by_frequency(runs)),
        "experts": ("What each expert is good at", sections.by_group(runs)),
        "differences": ("Where the experts differ", sections.diversity(runs)),
        "calibration": ("Calibration", sections.calibration(runs)),
        "shift": ("Other class frequencies", sections.agnostic(runs)),
        "training": ("Training", sections.training(runs)),
        "confusions": ("Most confused classes", sections.confusions(runs)),
        "pictures": ("Pictures", shown_pictures(runs, pictures)),
        "classes": ("Classes", class_table(runs)),
        "configuration": ("Configuration and cost", configuration(runs) + sections.cost(runs)),
    }
    halves = ("frequency", "experts", "calibration", "shift") if len(runs) == 1 else ()
    title = f"mdcs report: {next(iter(runs)) if len(runs) == 1 else f'{len(runs)} runs side by side'}"
    loss, data = (choice_of(first.config, group) for group in ("loss", "data"))
    line = f"{loss} with K = {first.num_experts}, {data}, {len(first.classes):,} classes, {first.provenance}"
    return document(title, line if len(runs) == 1 else " · ".join(runs), parts, halves)


def document(title: str, line: str, parts: Mapping[str, tuple[str, str]], halves: Sequence[str]) -> str:
    """The parts (id: heading, HTML) with landmarks, style and script; `halves` share a line where there is room.

    The page's policy forbids all scripts but its own, and to ask for any address.
    """
    style, script = ((files("mdcs.report") / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    links = "".join(f'<li><a href="#{key}">{key.capitalize()}</a></li>' for key in parts)
    body = "".join(section(key, heading, html, halves) for key, (heading, html) in parts.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="mdcs report">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#summary">Skip to the summary</a>
<header><h1>{escape(title)}</h1><p class="dim">{escape(line)}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}</main>
<footer>Made from the run folder's stored predictions by mdcs report. An empty group is n/a.</footer>
<div id="tip" hidden></div>
<div id="said" class="skip" role="status"></div>
<script>{script}</script>
</body>
</html>
"""


def section(key: str, heading: str, html: str, halves: Sequence[str]) -> str:
    """One part of the page."""
    half = ' class="half"' if key in halves else ""
    return f'<section{half} aria-labelledby="{key}"><h2 id="{key}">{escape(heading)}</h2>{html}</section>\n'


def shown_pictures(runs: Mapping[str, Contents], pictures: Pictures | None) -> str:
    """Confident mistakes, and what only one expert gets right."""
    parts, most = [], max(2, MOST_PICTURES // (2 * len(runs)))
    for name, run in runs.items():
        parts.append(f"<h3>{escape(name)}</h3>" if len(runs) > 1 else "")
        wrong, alone = run.confident_mistakes(most), run.only_one_right(most)
        uri = thumbnails(run, [*wrong, *(n for n, _ in alone)], pictures)
        if isinstance(uri, str):
            parts.append(f"<p>{escape(uri)}</p>")
            continue
        lists = {"Confident mistakes of the ensemble": [(n, 0) for n in wrong], "What only one expert gets right": alone}
        for heading, chosen in lists.items():
            cells = "".join(f"<li>{picture(run, n, j, uri[n])}</li>" for n, j in chosen)
            parts.append(f"<h3>{heading}</h3>" + (f'<ul class="pictures">{cells}</ul>' if chosen else "<p>There is none.</p>"))
    return "".join(parts)


def picture(run: Contents, n: int, answerer: int, uri: str) -> str:
    """One thumbnail with its true class and the answers."""
    names, true = run.classes.names, run.classes.names[run.predictions.labels[n]]
    answer, sure = names[run.answers_NJ[n, answerer]], 100 * run.confidence_NJ[n, answerer]
    tiny = ' class="tiny"' if uri.startswith("data:image/png") else ""
    if answerer == 0:
        words = f"is {true}, answered {answer} ({sure:.0f} %)"
    else:
        words = f"is {true}: expert {answerer} ({sure:.0f} %); ensemble {names[run.answers_NJ[n, 0]]}"
    path = escape(run.predictions.paths[n])
    return f'<img{tiny} src="{uri}" alt="picture {n}, {escape(true)}" title="{path}" width="96" height="96">{escape(words)}'


def configuration(runs: Mapping[str, Contents]) -> str:
    """Each run's settings, and what differs between several."""
    parts = []
    if len(runs) > 1:
        flat = [flattened(run.config) for run in runs.values()]
        differing = [key for key in dict.fromkeys(key for of in flat for key in of) if len({json.dumps(of.get(key)) for of in flat}) > 1]
        rows = [[escape(key), *(sections.told(of.get(key)) for of in flat)] for key in differing]
        parts.append(sections.table(["setting", *runs], rows, "Settings that differ.", text=range(1, len(runs) + 1)) if rows else "")
    for name, run in runs.items():
        text = escape(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
        title = f"Configuration of {escape(name)}" if len(runs) > 1 else "Configuration"
        parts.append(f'<details><summary>{title}</summary><pre tabindex="0">{text}</pre></details>')
    return "".join(parts)
