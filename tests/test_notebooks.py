"""The notebooks: stored without outputs; each runs from any folder, shows its figures, takes under a minute and leaves nothing behind."""

import ast
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = {"01_first_run": 4, "02_experts": 4, "03_variance": 2, "04_calibration_and_priors": 5}
CPU_SECONDS = 60
# In a process of its own: what Jupyter's packages warn of would be errors here.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def code(path: Path) -> list[str]:
    """Its code cells, without the lines that are IPython's own."""
    cells = ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    return ["\n".join(line for line in cell.splitlines() if not line.startswith("%")) for cell in cells]


def test_the_notebooks_are_those_that_are_promised() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    notebook = read(path)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "clear all outputs before committing"
        assert not cell["metadata"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_explain_and_use_nothing_private(path: Path) -> None:
    cells = read(path)["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert texts[0].startswith("# ") and "600 test pictures" in texts[0] and len(texts) >= 0.5 * len(cells) - 1
    for cell in code(path):
        for node in ast.walk(ast.parse(cell)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            assert not [name for name in names if name.startswith("_")]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_anywhere_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    here, temporary, done = tmp_path / "any folder", tmp_path / "temporary", tmp_path / "done.ipynb"
    here.mkdir()
    temporary.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", EXECUTE, str(path), str(here), str(done)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert finished.returncode == 0, finished.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    outputs = [output for cell in read(done)["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not list(here.iterdir()), "runs go to a temporary folder"
    assert not list(temporary.glob("tmp*/**/config.yaml")), "which is gone with the kernel"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS
