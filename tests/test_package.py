"""What a user installs: the wheel, run from another folder in an environment of its own."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from conftest import ROOT


@pytest.mark.slow
def test_the_wheel_trains_from_another_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("mdcs-*.whl")

    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    # The dependencies are those of this environment; as a plain path, so that its link to the checkout is not followed.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    work = tmp_path / "elsewhere"
    work.mkdir()
    where = subprocess.run([python, "-c", "import mdcs; print(mdcs.__file__)"], cwd=work, check=True, capture_output=True, text=True)
    assert where.stdout.startswith(str(packages))
    command = [tmp_path / "venv" / "bin" / "mdcs", "train", "trainer.max_epochs=1"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ensemble" in done.stdout
    assert len(list(work.glob("runs/digits-resnet8-mdcs/*/scores.json"))) == 1
