"""Two ranks: the same training as one, one run folder, no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ddp_worker
from conftest import ROOT
from mdcs.losses.mdcs import MDCS
from mdcs.training.module import share_weight
from mdcs.types import Classes, Output, Views

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
TWO_RANKS = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]


def test_loss_and_gradient_of_two_ranks_are_those_of_one_process() -> None:
    """Five pictures on one rank and three on the other, each rank's loss weighted by its rows, gradients averaged."""
    generator = torch.Generator().manual_seed(0)
    logits_VBKC = torch.randn(2, 8, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels_B = torch.randint(0, 4, (8,), generator=generator)
    loss = MDCS(Classes(tuple("abcd"), torch.tensor([90, 30, 10, 2])), confident_only=False)

    def total(rows: slice) -> torch.Tensor:
        out = Output(logits_VBKC[:, rows], logits_VBKC[:, rows])
        return loss(out, Views(logits_VBKC, F.one_hot(labels_B[rows], 4).double(), labels_B[rows]), 10)["loss"]

    whole = total(slice(None))
    shared = (total(slice(0, 5)) * share_weight(5, 2, 8) + total(slice(5, 8)) * share_weight(3, 2, 8)) / 2
    torch.testing.assert_close(shared, whole)
    grads = [torch.autograd.grad(value, logits_VBKC)[0] for value in (whole, shared)]
    torch.testing.assert_close(grads[0], grads[1])


def test_a_trajectory_of_two_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    done = subprocess.run([*TORCHRUN, str(ROOT / "tests" / "ddp_worker.py"), str(tmp_path)], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    state, seen, row = ddp_worker.train(tmp_path / "one", [])
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in state.items():
        torch.testing.assert_close(ranks[0]["state"][name], value, rtol=1e-9, atol=1e-9, msg=name)
        assert ranks[0]["state"][name].equal(ranks[1]["state"][name]), name
    for name in ("train/loss", "train/acc", "train/consistency", "train/confident_few"):
        assert ranks[0]["row"][name] == pytest.approx(row[name], rel=1e-5), name

    indices = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for epoch in range(2):
        steps = [indices[0][epoch][step] + indices[1][epoch][step] for step in range(10)]
        assert steps == seen[epoch], "each global batch is the batch of one process"
        assert sorted(index for step in steps for index in step) == list(range(305)), "every training picture once"
        assert [len(indices[rank][epoch][-1]) for rank in (0, 1)] == [8, 9]


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulated_micro_batches_are_one_batch(micro_batches: int, tmp_path: Path) -> None:
    """`data.batch_size` counts the pictures of an optimiser step; the last one of an epoch has 17, in unequal parts."""
    whole, seen, _ = ddp_worker.train(tmp_path / "whole", [])
    parts, in_parts, _ = ddp_worker.train(tmp_path / "parts", [f"trainer.accumulate_grad_batches={micro_batches}"])
    assert [index for step in seen[0] for index in step] == [index for step in in_parts[0] for index in step]
    assert len(in_parts[0][0]) == 32 // micro_batches
    for name, value in whole.items():
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_ranks_write_one_run_folder(launcher: str, tmp_path: Path) -> None:
    start = [sys.executable] if launcher == "lightning" else TORCHRUN
    ranks = TWO_RANKS if launcher == "lightning" else ["trainer.accelerator=cpu"]  # torchrun says how many
    words = ["train", *ranks, "trainer.max_epochs=1", "data.val_fraction=0.2"]
    done = subprocess.run([*start, "-m", "mdcs", *words], env=ONE_THREAD, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ensemble") == 1, "rank 0 alone prints"
    (folder,) = (tmp_path / "runs" / "digits-resnet8-mdcs").iterdir()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert {path.name for path in folder.iterdir()} == {
        *("checkpoints", "predictions", "classes.json", "config.yaml", "metrics.csv", "report.html", "run.log", "scores.json", "subset.csv")
    }
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["n"], scores["world_size"]) == (600, 2)
    assert np.load(folder / "predictions" / "test" / "index.npy").tolist() == list(range(600))
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("victim", ["first", "second"])
def test_when_one_rank_dies_the_other_ends(victim: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mdcs", "train", *TWO_RANKS, "trainer.max_epochs=100000", f"hydra.run.dir={tmp_path / 'run'}"]
    first = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until((tmp_path / "run" / "checkpoints" / "last.ckpt").exists, 120)
    second = next(int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent_of(path) == first.pid)
    os.kill(first.pid if victim == "first" else second, signal.SIGKILL)
    assert first.wait(timeout=60) != 0
    wait_until(lambda: not Path(f"/proc/{second}").exists(), 60)


def parent_of(stat: Path) -> int:
    """The parent of a process, from its line in /proc; -1 if it has gone."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
