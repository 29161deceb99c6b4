"""The benchmark of the views runs, and what it compares is the same: the plain operations of Pillow and the batched ones."""

import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from mdcs.augment.autoaugment import SUB_POLICIES, AutoAugment
from test_augment_reference import VECTORS, chw

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("picture", ["image32", "image64x48"])
def test_plain_autoaugment_is_the_batched_one(picture: str) -> None:
    plain = runpy.run_path(str(BENCHMARKS / "plain_views.py"))["AUTOAUGMENT"]
    cases = [(k, sign) for k in range(25) for sign in (-1, 1)]
    sub_policy_B = torch.tensor([k for k, _ in cases])
    signs_B2 = torch.tensor([[max(sign, 0)] * 2 for _, sign in cases])
    images = chw(VECTORS[picture]).expand(50, -1, -1, -1)
    got = AutoAugment().apply_chosen(images, sub_policy_B, torch.ones(50, 2, dtype=torch.bool), signs_B2)
    for row, (k, sign) in enumerate(cases):
        one = Image.fromarray(VECTORS[picture])
        for name, _, level in SUB_POLICIES[k]:
            one = plain[name](one, level, sign)
        # Another compiler may contract a·x + b, and decide otherwise about a source exactly between two pixels.
        assert (got[row] != chw(one)).float().mean() < 1e-3, (k, sign)


def test_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    try:
        text = runpy.run_path(str(BENCHMARKS / "views.py"))["main"](["--quick"])
    finally:
        torch.set_num_threads(threads)
    rates = [float(line.split("|")[4]) for line in text.splitlines() if line.startswith("| 32 | 16 |") and line.count("|") == 8]
    assert len(rates) == 4 and min(rates) > 0
    counts = [[float(cell) for cell in line.split("|")[4:7]] for line in text.splitlines() if line.count("|") == 7 and "(" in line]
    assert len(counts) == 2
    for alone, at_once, steps in counts:
        assert alone > 200 and at_once < 1.5 * alone / steps + 0.5  # small batches lack some operations
    assert "GFLOP/s" in text
