"""The table of predictions: its columns, its rows, and files that take rows as they come, so that a million pictures need little memory."""

import csv
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from mdcs.errors import UserError
from mdcs.evaluation.combine import combine

SUFFIXES = (".csv", ".parquet")
ROWS_IN_A_GROUP = 65_536  # of a Parquet file, collected before they are written

Cell = str | float | None
Write = Callable[[Sequence[Sequence[Cell]]], None]


def columns(top_k: int, num_experts: int) -> list[str]:
    """Names of the table's columns, in order."""
    best = [name for rank in range(1, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    return ["file", *best, *(f"expert_{k}" for k in range(1, num_experts + 1)), "agreement", "error"]


def rows(files: Sequence[str], errors: Sequence[str | None], logits: Tensor, names: Sequence[str], top_k: int) -> list[list[Cell]]:
    """One row for each of `files`; where `errors` says why a file could not be read, the row says no more than that.

    `logits` (B, K, C) of the other files, in order. Probabilities are the softmax of the mean over the experts, `agreement` is the share of
    experts whose first choice is that of the ensemble.
    """
    probabilities_BC = combine(logits.float()).softmax(-1)
    best_BT = probabilities_BC.topk(top_k)
    votes_BK = logits.argmax(-1)
    agreement_B = (votes_BK == best_BT.indices[:, :1]).float().mean(-1)
    read = zip(best_BT.values.tolist(), best_BT.indices.tolist(), votes_BK.tolist(), agreement_B.tolist(), strict=True)
    table: list[list[Cell]] = []
    for file, error in zip(files, errors, strict=True):
        if error is not None:
            table.append([file, *[None] * (2 * top_k + logits.shape[1] + 1), error])
            continue
        values, labels, votes, agreement = next(read)
        best = [cell for label, value in zip(labels, values, strict=True) for cell in (names[label], value)]
        table.append([file, *best, *(names[vote] for vote in votes), agreement, None])
    return table


def check_table(output: Path) -> None:
    """Refuse a format that cannot be written here."""
    if output.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"output={output} needs what is not installed: `pip install pyarrow`, or choose a .csv")


@contextmanager
def table(file: Path, columns: Sequence[str]) -> Iterator[Write]:
    """A function that appends rows to `file`: CSV (UTF-8, numbers with 6 digits, nothing for None) or Parquet, as its suffix says."""
    with (parquet_table if file.suffix.lower() == ".parquet" else csv_table)(file, columns) as write:
        yield write


@contextmanager
def csv_table(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    """Any name survives: commas, quotes and line breaks are quoted, bytes of a file's name that are no UTF-8 are written as they are."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        plain = csv.writer(file, lineterminator="\n")
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)  # the other one leaves a lone carriage return bare

        def write(rows: Sequence[Sequence[Cell]]) -> None:
            for row in rows:
                cells = ["" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row]
                (quoting if any("\r" in cell for cell in cells) else plain).writerow(cells)

        write([columns])
        yield write


@contextmanager
def parquet_table(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    """Texts are UTF-8, so what is none in a file's name is replaced by question marks."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    number, text = pyarrow.float32(), pyarrow.string()
    schema = pyarrow.schema([(name, number if name.startswith(("probability_", "agreement")) else text) for name in columns])
    waiting: list[Sequence[Cell]] = []

    with ParquetWriter(path, schema) as file:

        def write(rows: Sequence[Sequence[Cell]], most: int = ROWS_IN_A_GROUP) -> None:
            waiting.extend([cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell for cell in row] for row in rows)
            if len(waiting) >= most:
                file.write_table(pyarrow.table([list(column) for column in zip(*waiting, strict=True)], schema))
                waiting.clear()

        yield write
        write([], most=1)
