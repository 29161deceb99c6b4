"""A table of words, on the screen, in Markdown and in LaTeX."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rich.markup import escape
from rich.table import Table

MOST = 30  # letters in a line of a column; longer ones are broken between words
LEAST = 12  # letters in a line of the first column


class Grid(NamedTuple):
    """A table of words, however it will be drawn."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def drawn(grid: Grid, width: int) -> list[Table]:
    """For a screen of `width` columns: no number is broken, and no word that fits. What is too wide goes on in a table with the same first
    column."""
    lines = [[cell.replace(" [", "\n[").replace("] ", "]\n").replace(" p ", "\np ") for cell in row] for row in grid.rows]
    header = [name.replace(", ", ",\n").replace(" ", "\n") for name in grid.header]
    longest = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(header, *lines, strict=True)]
    longest = [longest[0], *(min(length, MOST) for length in longest[1:])]
    narrow = max(len(word) for row in [header, *lines] for word in row[0].split(" "))  # the first column's, which breaks there
    narrow = min(narrow, width // 2)
    for first in (max(narrow, min(longest[0], width // 3)), narrow):
        blocks: list[list[int]] = [[]]
        for column in range(1, len(header)):
            if blocks[-1] and 4 + first + sum(longest[c] + 3 for c in [*blocks[-1], column]) > width:
                blocks.append([])
            blocks[-1].append(column)
        if len(blocks) == 1:
            break
    tables: list[Table] = []
    for block in blocks:
        table = Table(title=None if tables else escape(grid.title), title_justify="left", title_style="bold")
        # A single column that does not fit takes from the first one, and is folded itself where that is not enough.
        names = min(first, max(width - 4 - sum(longest[c] + 3 for c in block), LEAST))
        table.add_column(header[0], width=names, overflow="fold")
        for column in block:
            justify: Literal["left", "right"] = "left" if header[column] == "augmentation" else "right"
            table.add_column(header[column], justify=justify, width=min(longest[column], width - 7 - names), overflow="fold")
        for row in lines:
            table.add_row(*(escape(row[column]) for column in (0, *block)))
        tables.append(table)
    return tables


def markdown(grid: Grid) -> str:
    """A Markdown table under its title."""
    lines = [grid.header, ("---",) * len(grid.header), *grid.rows]
    return grid.title + "\n\n" + "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def latex(grid: Grid) -> str:
    """A table with the rules of booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(escaped(cell) for cell in cells) + r" \\"

    body = "\n".join(line(row) for row in grid.rows)
    columns = "l" + "r" * (len(grid.header) - 1)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{escaped(grid.title)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(grid.header)}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}"
    )


def escaped(text: str) -> str:
    """Plain text as LaTeX."""
    special = {
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "−": "$-$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "×": r"$\times$",
    }
    text = re.sub(r"(?<![\w.-])-(?=\d)", "−", text)  # a minus sign rather than a hyphen
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
