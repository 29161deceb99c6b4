"""Tables of words: nothing is broken on narrow screens, and Markdown and LaTeX are valid."""

import io
import re

import pytest
from rich.console import Console

from mdcs.grid import Grid, drawn, escaped, latex, markdown

GRID = Grid(
    "Difference to a|b, views=[weak,strong] in points [95 % interval].",
    ("method", "pairs", "overall, seeds", "augmentation"),
    [
        ("ce_1, model.num_experts=1, loss.views=[weak,strong]", "13", "-3.1 [-4.6, -1.6] 12/13 p < 0.001", "digits"),
        ("a|b", "2", "0.0 all equal", "digits, augment.weak.shift=2, augment.strong.brightness=0.25"),
    ],
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_word_or_number_is_broken_on_a_narrow_screen(width: int) -> None:
    tables = drawn(GRID, width)
    shown = io.StringIO()
    Console(width=width, file=shown).print(*tables, sep="\n")
    text = shown.getvalue()
    assert max(map(len, text.split("\n"))) <= width and "…" not in text
    words = ["pairs", "augmentation", "overall,", "[-4.6, -1.6]", "12/13", "p < 0.001", "all equal"]
    words += ["model.num_experts=1,", "augment.strong.brightness=0.25"] if width >= 60 else []
    assert all(word in text for word in words)
    assert (len(tables) == 1) == (width >= 120) and all(table.columns[0].header == "method" for table in tables)
    assert "[weak,strong] in points [95 % interval]." in " ".join(text.split())  # no markup


def test_markdown_has_as_many_cells_in_each_line() -> None:
    title, *lines = markdown(GRID).split("\n\n")[0:1] + markdown(GRID).split("\n\n")[1].split("\n")
    assert title == GRID.title and lines[1] == "| --- | --- | --- | --- |" and len(lines) == 4
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {6} and r"| a\|b |" in lines[3]


def test_latex_is_valid() -> None:
    text = latex(GRID)
    rows = [line for line in text.split("\n") if line.endswith(r" \\")]
    assert len(rows) == 3 and {len(re.split(r"(?<!\\)&", row)) for row in rows} == {4} and r"\begin{tabular}{lrrr}" in text
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}") and not re.search(r"(?<!\\)[%_#^~]", text)
    assert "$-$3.1 [$-$4.6, $-$1.6] 12/13 p $<$ 0.001" in text and text.endswith(r"\end{table}")
    assert escaped("a_b & 50 % ± {x}") == r"a\_b \& 50 \% $\pm$ \{x\}"
    assert escaped("digits-LT 3-shot 2-3, -2.5") == "digits-LT 3-shot 2-3, $-$2.5"
