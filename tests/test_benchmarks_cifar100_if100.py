"""The zip of CIFAR-100-LT holds what the archive gives, in its order; the script for the published recipe trains in pieces and reports."""

import importlib
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mdcs.data.arrays import Cifar

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Files as those of CIFAR-100, with 100 training and 2 test pictures a class."""
    folder, random = tmp_path / "cifar-100-python", np.random.RandomState(3)
    folder.mkdir()
    for name, count in (("train", 10_000), ("test", 200)):
        labels = random.permutation(np.arange(count) % 100).tolist()
        data = random.randint(0, 256, (count, 3072)).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}, protocol=4))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class_{label:02}" for label in range(100)]}, protocol=4))
    return folder


def test_the_zip_gives_the_subset_of_the_archive_in_its_order(official: Path, tmp_path: Path) -> None:
    """With the same settings, IF 100: the pictures are those of the same draw, picture by picture; the test split has another order."""
    count = load("cifar100_if100_zip").write_zip(str(official), tmp_path / "lt.zip")
    one, other = (Cifar(str(root), 100).splits() for root in (official, tmp_path / "lt.zip"))
    assert count == len(one.train.labels) < 3000 and one.counts_before_validation[0] == 100 and one.counts_before_validation[-1] == 1
    assert other.classes.names == one.classes.names and other.counts_before_validation == one.counts_before_validation
    assert torch.equal(other.train.images, one.train.images) and torch.equal(other.train.labels, one.train.labels)
    assert other.notes == ()
    tests = [sorted(zip(part.test.labels.tolist(), map(bytes, part.test.images.numpy()), strict=True)) for part in (one, other)]
    assert tests[0] == tests[1] and len(tests[0]) == 200


def test_other_factors_draw_from_the_zip_and_say_so(official: Path, tmp_path: Path) -> None:
    load("cifar100_if100_zip").write_zip(str(official), tmp_path / "lt.zip")
    splits = Cifar(str(tmp_path / "lt.zip"), 100, imbalance_factor=10).splits()
    assert len(splits.train.labels) < 2000
    assert any("not the official one" in note for note in splits.notes) and any("are drawn" in note for note in splits.notes)


def test_the_table_has_finished_and_unfinished_runs(tmp_path: Path) -> None:
    scores = {"accuracy": 0.55, "accuracy_many": 0.7, "accuracy_medium": 0.55, "accuracy_few": 0.3, "wall_seconds": 200.4}
    scores |= {"images_per_second": 21000.0, "git_commit": "abc", "peak_memory_mib": 2000, "peak_device_memory_mib": 900, "n": 10000}
    scores |= {"device": "H", "precision": "bf16-mixed", "versions": {"torch": "2.15"}, "train_pictures": 10847}
    for seed, accuracy in (("0", 0.55), ("1", 0.57)):
        (tmp_path / seed).mkdir()
        (tmp_path / seed / "scores.json").write_text(json.dumps(scores | {"accuracy": accuracy}))
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "metrics.csv").write_text("epoch\n1\n2\n")
    text = load("cifar100_if100").table([tmp_path / str(seed) for seed in range(3)], 400, "command")
    assert "| seed 1 | 57.0 | 70.0 | 55.0 | 30.0 | 200 | 21000 |" in text
    assert "| seed 2 | after epoch 2 of 400 |" in text
    assert "| mean ± s.d., n = 2 | 56.0 ± 1.4 | 70.0 ± 0.0 |" in text
    assert "| 56.1 |" in text and "| 55.4 | 72.9 | 56.3 | 33.7 |" in text and "commit abc" in text


@pytest.mark.slow
def test_training_in_pieces_ends_with_the_table(official: Path, tmp_path: Path) -> None:
    words = ["--quick", "--root", str(official), "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "table.md")]
    script = load("cifar100_if100")
    text = script.main(words)
    assert "| seed 0 | " in text and "after epoch" not in text and text.endswith("Done.\n")
    assert (tmp_path / "table.md").read_text(encoding="utf-8") in text
    log = (tmp_path / "runs" / "0" / "run.log").read_text(encoding="utf-8")
    assert "trainer.max_time is over after epoch 0 of 2" in log and "epoch 2/2" in log
    assert script.main([*words, "--minutes", "0"]) == text  # what is finished is not trained again
