"""`mdcs train -m`: failures are told and do not end the sweep, nothing is left of mistakes, a sweep goes on, launchers are extras."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdcs import cli
from mdcs.errors import UserError
from mdcs.sweep import Sweep, differing
from mdcs.training.progress import RunProgress

SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=2"]


def mdcs(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the entry point in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["mdcs", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("words", [["model.num_experts=0,-1"], ["loss=ce,nope"], ["optim.lrr=1,2"]])
@pytest.mark.parametrize("place", [[], ["hydra.sweep.dir=a/b"]])
def test_nothing_is_left_of_a_sweep_of_mistakes(
    words: list[str], place: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mdcs(monkeypatch, "train", "-m", *words, *SHORT, *place) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("mdcs: ")
    assert not any(tmp_path.iterdir())
    (tmp_path / "a").mkdir()  # what was there stays
    assert mdcs(monkeypatch, "train", "-m", *words, *SHORT, "hydra.sweep.dir=a/b") == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_sweep_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert mdcs(monkeypatch, "train", "-m", "seed=0,1", *SHORT, "hydra.sweep.dir=file") == 2
    error = capfd.readouterr().err
    assert error == f"mdcs: hydra.sweep.dir={tmp_path / 'file'}: {tmp_path / 'file'} is no folder; choose another place\n"
    assert (tmp_path / "file").read_text() == "mine"
    assert mdcs(monkeypatch, "train", "-m", "seed=0,1", *SHORT, f"hydra.sweep.dir={'x' * 300}") == 2
    assert "File name too long" in capfd.readouterr().err


def test_an_accident_in_one_job_is_listed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = RunProgress.__init__

    def accident(self: RunProgress, *arguments: object, **named: object) -> None:
        monkeypatch.setattr(RunProgress, "__init__", usual)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(RunProgress, "__init__", accident)
    assert mdcs(monkeypatch, "train", "-m", "loss=ce,mdcs", *SHORT, "hydra.sweep.dir=sweep") == 2
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert "failed: job 0 (loss=ce trainer.max_epochs=1 trainer.limit_train_batches=2): RuntimeError: CUDA out of memory" in error
    assert error.splitlines()[-1].startswith("mdcs: 1 of the sweep's jobs failed, see above; finished jobs: 1; ")
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["1", "multirun.yaml"]


def test_an_interrupted_sweep_goes_on_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("mdcs ("):  # job 1 introduces itself
                raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    handler = Interrupt()
    logging.getLogger("mdcs").addHandler(handler)
    words = ["train", "-m", "loss=ce,mdcs", *SHORT, "hydra.sweep.dir=sweep"]
    assert mdcs(monkeypatch, *words) == 130
    logging.getLogger("mdcs").removeHandler(handler)
    error = capfd.readouterr().err
    assert f"the sweep is interrupted; finished jobs: 0; the same command with hydra.sweep.dir={tmp_path / 'sweep'}" in error
    kept = (tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert mdcs(monkeypatch, *words) == 0
    assert (tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == kept
    assert (tmp_path / "sweep" / "1" / "scores.json").exists()
    capfd.readouterr()

    assert mdcs(monkeypatch, "train", "-m", "loss=ce,mdcs", "optim.lr=0.01", *SHORT, "hydra.sweep.dir=sweep") == 2
    error = capfd.readouterr().err
    assert error.count("sweep/0 holds a run with other settings (optim.lr=0.1 instead of 0.01)") == 2  # when it fails, and in the list


def test_places_and_what_was_chosen_are_no_difference() -> None:
    before = {"data": {"root": "/a", "image_size": 32}, "trainer": {"precision": "32-true", "devices": 1}, "loss": {"alpha": 0.6}}
    asked = {"data": {"root": "/b", "image_size": None}, "trainer": {"precision": "auto", "devices": 2}, "loss": {"alpha": 0.6}}
    assert differing(asked, before) == []
    assert differing({**asked, "loss": {"alpha": 0.5, "beta": 1}}, before) == ["loss.alpha=0.6 instead of 0.5", "loss.beta=1 is new"]


def test_launchers_are_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert Sweep.of(["hydra/launcher=submitit", "-m"]).words[0] == "hydra/launcher=submitit_slurm"
    assert "hydra.launcher.n_jobs=2" in Sweep.of(["hydra/launcher=joblib"]).words
    chosen = Sweep.of(["hydra/launcher=joblib", "hydra.launcher.n_jobs=5", "hydra.sweep.dir=a"])
    assert chosen.words[1:] == ["hydra.launcher.n_jobs=5", "hydra.sweep.dir=a"] and chosen.folder == tmp_path / "a"
    for launcher, module in (("joblib", "joblib"), ("submitit", "submitit"), ("submitit_local", "submitit")):
        monkeypatch.setitem(sys.modules, f"hydra_plugins.hydra_{module}_launcher", None)
        with pytest.raises(UserError, match=r"hydra/launcher=.* needs an extra: pip install 'mdcs\[sweeps\]'"):
            Sweep.of([f"hydra/launcher={launcher}"])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local"]], ids=lambda words: words[0])
def test_jobs_in_processes(launcher: list[str], tmp_path: Path) -> None:
    """A failed job is listed whichever process it was in, the others finish, and `compare` reads the folder."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher[0].partition('_')[0]}_launcher")
    command = [sys.executable, "-m", "mdcs", "train", "-m", f"hydra/launcher={launcher[0]}", *launcher[1:], "hydra.sweep.dir=sweep"]
    command += ["loss=ce,mdcs", "model.num_experts=0,2", *SHORT]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("failed: job ") == 2 and "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert "mdcs: 2 of the sweep's jobs failed, see above; finished jobs: 1, 3" in done.stderr
    assert sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/scores.json")) == ["1", "3"]
    compared = [sys.executable, "-m", "mdcs", "compare", "runs=[sweep]"]
    shown = subprocess.run(compared, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and "mdcs" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib"]], ids=["basic", "joblib"])
def test_ctrl_c_ends_a_sweep_with_130(launcher: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mdcs", "train", "-m", *launcher, "loss=ce,mdcs", "trainer.max_epochs=100000", "hydra.sweep.dir=sweep"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    _, error = started.communicate(timeout=60)
    assert started.returncode == 130, error
    assert "the sweep is interrupted; no job has finished; the same command with hydra.sweep.dir=" in error
    assert "Traceback" not in error


def test_another_sweep_in_the_folder_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mdcs(monkeypatch, "train", "-m", "seed=0,1", "model.num_experts=1", *SHORT, "hydra.sweep.dir=sweep") == 0
    before = {path: path.read_bytes() for path in Path("sweep").rglob("*") if path.is_file()}
    assert Path("sweep/multirun.yaml") in before
    capfd.readouterr()
    assert mdcs(monkeypatch, "train", "-m", "seed=5,6", "model.num_experts=1", *SHORT, "hydra.sweep.dir=sweep") == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "mdcs: 2 of the sweep's jobs failed, see above"
    assert {path: path.read_bytes() for path in Path("sweep").rglob("*") if path.is_file()} == before
