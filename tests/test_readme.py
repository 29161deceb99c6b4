"""The README's commands, executed: every line of its `sh` blocks and its `python` block, in one folder, in order.

Shortened where they would take long: two training steps of one epoch. `make` and `source` lines are for a person; CI runs `make test`.
"""

import os
import re
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = {"digits": "| method", "cifar100_ten_if100": "| method", "cifar100_first_epochs": "| 1 | 12.875"}
CIFAR = ROOT.parent / "shared" / "data" / "cifar100.zip"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line.partition("  # ")[0].strip() for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith(("make", "source", "git", "#"))]


@pytest.mark.slow
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    if CIFAR.exists():
        (tmp_path / "cifar100.zip").symlink_to(CIFAR)
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    make_photos(tmp_path / "photos")
    ran = 0
    for command in commands():
        if ("cifar100" in command and not CIFAR.exists()) or command.startswith("python benchmarks"):
            continue
        if " train" in command and "resume=" not in command:
            command += " trainer.max_epochs=1 trainer.limit_train_batches=2"
            if "devices=" in command and not torch.cuda.is_available():
                command += " trainer.accelerator=cpu"
        if "DIR" in command:
            newest = max((path.parent for path in tmp_path.glob("runs/*-*/*/scores.json")), key=os.path.getmtime)
            command = command.replace("DIR", str(newest))
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran >= 16


def make_photos(folder: Path) -> None:
    """Own pictures, as a newcomer has them: three classes of different size."""
    random = np.random.RandomState(0)
    for name, count in (("ant", 9), ("bee", 4), ("crab", 2)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.randint(0, 256, (40, 32, 3)).astype(np.uint8)).save(folder / name / f"{number}.jpg")


@pytest.mark.slow
def test_the_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = blocks("python")
    exec(compile(program.replace("max_epochs=60", "max_epochs=1"), "README.md", "exec"), {})


def test_every_file_of_the_tree_exists() -> None:
    (tree,) = blocks("text")
    names = re.findall(r"^([\w./]+\.(?:py|yaml|md|txt)|[\w./]+/)", tree, re.MULTILINE)
    assert len(names) > 8
    assert all((ROOT / name).exists() for name in names), names
    sources = {f"src/mdcs/{path.name}" + ("/" if path.is_dir() else "") for path in (ROOT / "src" / "mdcs").iterdir()}
    unnamed = sources - set(names) - {f"src/mdcs/{name}" for name in ("__init__.py", "__main__.py", "__pycache__/", "py.typed")}
    assert not unnamed


def test_links_lead_somewhere_and_numbers_are_those_measured() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links), links
    for name, starts in TABLES.items():
        rows = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text(encoding="utf-8").splitlines()
        first = next(number for number, row in enumerate(rows) if row.startswith(starts))
        table = list(takewhile(lambda row: row.startswith("|"), rows[first:]))
        assert len(table) >= 3
        assert "\n".join(table) in README, name
