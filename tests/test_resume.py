"""A run that is killed and resumed ends with the same bits as one that is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from mdcs.build import load
from mdcs.cli import train_words
from mdcs.errors import UserError
from mdcs.evaluate import evaluate
from run_cases import make_run

POINTS = ("step:2", "checkpoint:3", "row:4", "end")


def call(folder: Path, *points: str) -> None:
    command = [sys.executable, str(ROOT / "tests" / "kill_points.py"), str(folder), *points]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def state(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def table(folder: Path) -> list[list[str]]:
    """metrics.csv without the last column, which is a speed."""
    return [line.split(",")[:-1] for line in (folder / "metrics.csv").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    call(folder, "end")
    return folder


def test_killed_three_times_and_resumed_it_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    call(folder, *POINTS)
    for name in ("last", "best"):
        ours, theirs = state(folder, name), state(whole, name)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours), name
    assert table(folder) == table(whole)
    assert [row[0] for row in table(folder)] == ["epoch", "1", "2", "3", "4", "5"]
    scores, other = (json.loads((run / "scores.json").read_text()) for run in (folder, whole))
    assert all(scores[key] == other[key] for key in ("accuracy", "ece", "per_class", "experts", "epochs", "seed"))
    trained = [tuple(line.split()) for line in Path(f"{folder}.epochs").read_text().splitlines()]
    assert trained == [
        *(("step:2", "1"), ("step:2", "2")),  # died within epoch 2
        *(("checkpoint:3", "2"), ("checkpoint:3", "3")),  # epoch 1 is not trained again; best.ckpt of epoch 3 was cut short
        *(("row:4", "3"), ("row:4", "4")),
        *(("end", "4"), ("end", "5")),
    ]


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "mdcs", "train", "trainer.max_epochs=100000", f"hydra.run.dir={folder}"]
    # A shell that runs the tests in the background has its children ignore the keys.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith(f"interrupted; `mdcs train resume={folder}` goes on after the last finished epoch\n")


def test_a_kill_from_outside_at_any_moment(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["trainer.max_epochs=5", "data.val_fraction=0.2", f"hydra.run.dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "mdcs", "train", *words], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "scores.json").exists(), "the kill came too late to prove anything"
    call(folder, "end")
    assert all(value.equal(state(whole)[key]) for key, value in state(folder).items())
    assert table(folder) == table(whole)
    assert "end 1\n" not in Path(f"{folder}.epochs").read_text()


@pytest.mark.parametrize(
    ("value", "message"), [("2", "has trained 3 epochs, and cannot have fewer"), ("0", "expected"), ("abc", "expected")]
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_refused_resume_changes_nothing(
    value: str, message: str, finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    train_words(["trainer.max_epochs=3", "trainer.limit_train_batches=1", "model.num_experts=1", f"hydra.run.dir={folder}"])
    if not finished:
        (folder / "scores.json").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        train_words([f"resume={folder}", f"trainer.max_epochs={value}"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", "a: [1"), ("config.yaml", "- a"), ("classes.json", "{"), ("classes.json", "{}")]
)
def test_a_damaged_run_is_one_line(name: str, content: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(content)
    for verb in (load, lambda run: evaluate(str(run))):
        with pytest.raises(UserError, match=f"{name} is (damaged|not a configuration)"):
            verb(folder)
