"""Run folders to report.html and to figures."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mdcs.config import require_run, runs_of
from mdcs.data.splits import Pictures
from mdcs.durable import write_durably
from mdcs.errors import UserError
from mdcs.output import check_folder
from mdcs.report.page import page

MARK = 'content="mdcs report"'

log = logging.getLogger("mdcs")


def write_report(folder: Path, pictures: Pictures | None = None) -> Path:
    """Write report.html of the evaluated run in `folder`, and return its place.

    `pictures` is the split that the run was scored on, if it is at hand: it saves reading the dataset for the thumbnails.
    """
    place = folder / "report.html"
    write_durably(place, page([folder], pictures))
    return place


def report(
    run: str | None = None, runs: Sequence[str] = (), output: str | None = None, figures: str | None = None, overwrite: bool = False
) -> Path:
    """One page about a run (`run`, or one of `runs`), or about several side by side (see `runs_of`); everything is in the one file.

    `output` is where it goes; None = report.html in the run's folder, or for several in the folder where the command is given. A file there
    that is no report is kept unless `overwrite`. `figures` names a folder for the plots of the page as PNG, SVG and PDF, made if needed.
    """
    if not run and not runs:
        raise UserError("give run=DIR, or runs=[A,B,...]")
    if run and runs:
        raise UserError(f"run={run} and runs=[{', '.join(runs)}]: give one of them; runs=[...] shows several side by side")
    if run:
        require_run("run", Path(run))
    found, unfinished = runs_of([run] if run else runs)
    folders = [folder.resolve() for folder in found]
    place = Path(output) if output else (folders[0] if len(folders) == 1 else Path.cwd()) / "report.html"
    check_place(place, overwrite)
    if figures:
        check_folder("figures", Path(figures))
    text = page(folders)
    try:
        write_durably(place, text)
    except OSError as error:
        raise UserError(f"output={place} cannot be written: {error.strerror or error}") from error
    console = Console()
    for folder in unfinished:
        console.print(f"note: {folder} has not finished and is left out", highlight=False, soft_wrap=True, markup=False)
    console.print(f"report: {place}", highlight=False, soft_wrap=True, markup=False)
    if figures:
        from mdcs.report.plots import save_figures  # matplotlib takes a second

        written = save_figures(folders, Path(figures))
        console.print(f"figures: {len(written)} files in {figures}", highlight=False, soft_wrap=True, markup=False)
    return place


def check_place(place: Path, overwrite: bool) -> None:
    """Refuse to write where there is no folder, or over a file that is no report."""
    if place.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output={place}: expected a file that ends in .html")
    if not place.parent.is_dir():
        raise UserError(f"output={place}: there is no folder {place.parent}; make it first")
    if place.is_dir():
        raise UserError(f"output={place} is a folder: give the name of a file")
    if place.exists() and not overwrite:
        with open(place, encoding="utf-8", errors="replace") as file:
            if MARK not in file.read(1000):
                raise UserError(f"{place} exists and is no report: give another output=..., or set overwrite=true")
