"""The table of all classes, which the page's script sorts, searches and pages; and the data that it carries."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from mdcs.report.contents import GROUPS, Contents
from mdcs.report.sections import dots, percent

FIRST_ROWS = 50  # also readable without script; the script shows as many a page


def class_data(runs: Mapping[str, Contents]) -> dict[str, Any]:
    """Columns as lists over the C classes. A column with "of" holds hits; its value is the share of the column `of`, pictures.

    One run: the ensemble, each expert, and which is best. Several: the ensemble of each.
    """
    first = next(iter(runs.values()))
    judged = " or ".join(dict.fromkeys(run.split for run in runs.values()))
    columns: list[dict[str, Any]] = [
        {"title": "class", "values": list(first.classes.names), "text": True},
        {"title": "group", "values": first.groups, "text": True},
        {"title": "training pictures", "values": first.classes.counts.tolist()},
        {"title": f"{judged} pictures", "values": first.support_C.tolist()},
    ]
    shown = []
    for name, run in runs.items():
        of = 3
        if run.support_C.tolist() != columns[3]["values"]:
            of = len(columns)
            columns.append({"title": f"{run.split} pictures, {name}", "values": run.support_C.tolist()})
        if run.classes.counts.tolist() != columns[2]["values"]:
            columns.append({"title": f"training pictures, {name}", "values": run.classes.counts.tolist()})
        answerers = run.answerers if len(runs) == 1 else [name]
        own = range(len(columns), len(columns) + len(answerers))
        for answerer, hits_C in zip(answerers, run.hits_JC, strict=False):
            short = answerer if len(runs) == 1 else "accuracy"
            columns.append({"title": f"{answerer}, %", "short": short, "values": hits_C.tolist(), "of": of})
        shown.append({"columns": list(own), "dots": dots(run)})
    if len(runs) == 1 and first.num_experts > 1:
        best = [" = ".join(map(str, experts)) or "none" for experts in first.diversity.best_experts()]
        columns.append({"title": "best expert", "values": best, "text": True})
    return {"columns": columns, "runs": shown}


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside <script>: nothing in it can end the element or begin another."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def class_table(runs: Mapping[str, Contents]) -> str:
    """The table with its controls, the data, and the first rows; a sentence where the runs have different classes."""
    names = [run.classes.names for run in runs.values()]
    if any(of != names[0] for of in names):
        return "<p>The runs have different classes, so there is no table of them; each run's own report has one.</p>"
    data = class_data(runs)
    columns = data["columns"]
    text = ["", ' class="text"']
    heads = ""
    for column in columns:
        button = f'<button type="button">{escape(column["title"])}</button>'
        heads += f'<th scope="col" aria-sort="none"{text["text" in column]}>{button}</th>'
    lines = []
    for c in range(min(FIRST_ROWS, len(names[0]))):
        cells = "".join(f"<td{text['text' in column]}>{escape(written(columns, column, c))}</td>" for column in columns[1:])
        lines.append(f'<tr><th scope="row">{escape(names[0][c])}</th>{cells}</tr>')
    options = "".join(f"<option>{group}</option>" for group in GROUPS)
    known = [f"{name}: {run.provenance}" if len(runs) > 1 else run.provenance for name, run in runs.items()]
    caption = escape("; ".join(known))
    return f"""<div id="class-table">
<div class="controls needs-script" hidden>
<label>Search <input id="search" type="search" autocomplete="off" spellcheck="false"></label>
<label>Group <select id="group"><option value="">all</option>{options}</select></label>
<button id="clear" type="button" hidden>Show all classes</button>
</div>
<p class="dim" id="count" role="status" tabindex="-1"></p>
<div class="scroll" tabindex="0" role="region" aria-label="Classes">
<table id="class-rows"><caption><span>{caption}. Buttons in the head sort.</span></caption>
<thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>
<p class="needs-script" hidden><button id="previous" type="button">Previous</button> <button id="next" type="button">Next</button></p>
</div>
<script type="application/json" id="data">{embedded(data)}</script>"""


def written(columns: list[dict[str, Any]], column: Mapping[str, Any], c: int) -> str:
    """One cell, as the script writes it."""
    if "of" not in column:
        return str(column["values"][c])
    n = columns[column["of"]]["values"][c]
    return percent(column["values"][c] / n if n else None)
