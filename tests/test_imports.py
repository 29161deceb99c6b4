"""Imports go one way, and what must answer within a second does not import torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mdcs

SOURCE = Path(mdcs.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

BASE = {"errors", "durable", "randomness", "types", "instantiate", "config"}
ROOMS = {"data", "augment", "models", "losses"}
SCIENCE = {"evaluation", "analysis"}
# What each part may import, beside itself. A file at the top that is not named here is a verb's: it may use all but the command line.
MAY_IMPORT = {
    "errors": set(),
    "randomness": set(),
    "durable": set(),
    "types": {"errors"},
    "instantiate": {"errors"},
    "config": {"errors", "instantiate"},
    **{room: BASE for room in ROOMS},
    **{room: BASE | SCIENCE for room in SCIENCE},
    "report": BASE | SCIENCE | {"data"},
    "training": BASE | ROOMS,
    "build": BASE | ROOMS | SCIENCE | {"training"},
}


def part_of(file: Path) -> str:
    """The folder or the file directly under mdcs."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


PARTS = {part_of(file) for file in FILES}


def imported_parts(file: Path) -> set[str]:
    """Parts of mdcs that a file imports, also inside functions; "" is the package itself."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import, which this test cannot follow"
            names = [f"{node.module}.{alias.name}" if node.module == "mdcs" else str(node.module) for alias in node.names]
        else:
            continue
        found |= {(*name.split("."), "")[1] for name in names if name.split(".")[0] == "mdcs"}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_go_one_way(file: Path) -> None:
    part = part_of(file)
    if part in ("cli", "__main__", "__init__"):
        return
    allowed = MAY_IMPORT.get(part, PARTS - {"cli", "__main__", "__init__"}) | {part}
    if part not in MAY_IMPORT:
        allowed |= {""}  # a verb may ask for mdcs.__version__
    assert imported_parts(file) <= allowed


def test_the_reader_of_imports_sees_them() -> None:
    assert {"config", "errors", "build", "train"} <= imported_parts(SOURCE / "cli.py")
    assert {"training", "data", "models"} <= imported_parts(SOURCE / "build.py")
    assert ROOMS | SCIENCE | {"training", "build", "cli"} <= PARTS


def test_the_command_line_starts_without_torch() -> None:
    program = (
        "import sys, mdcs, mdcs.cli, mdcs.config, mdcs.errors, mdcs.instantiate; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "mdcs" in loaded
    assert not {"torch", "numpy", "pytorch_lightning", "hydra", "sklearn"} & set(loaded)


def test_no_submodule_hides_a_function_of_the_package() -> None:
    defined = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8")).body
    functions = {node.name for node in defined if isinstance(node, ast.FunctionDef)}
    assert {"run", "load"} <= functions
    assert not functions & PARTS
