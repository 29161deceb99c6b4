"""Counts and draws against the published code (golden/lt_counts.json), and the validation carve."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdcs.data.classes import carve_validation, long_tailed_counts, long_tailed_subset
from mdcs.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "lt_counts.json").read_text())
CASES = [name for name in GOLDEN if name.startswith("cifar") and not name.endswith("reverse")]


@pytest.mark.parametrize("name", CASES)
def test_counts_and_indices_are_the_published_ones(name: str) -> None:
    golden: dict[str, Any] = GOLDEN[name]
    dataset, factor, profile = name.split("_")
    num_classes = int(dataset.removeprefix("cifar"))
    counts = long_tailed_counts(50_000 / num_classes, num_classes, float(factor.removeprefix("IF")), profile)  # type: ignore[arg-type]
    assert counts == golden["counts"]
    labels = np.arange(50_000) % num_classes
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    chosen = long_tailed_subset(labels, counts, seed=0)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
    assert chosen[:20].tolist() == golden["first20"]
    assert hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest() == golden["sha256"]


def test_all_published_cases_are_there() -> None:
    assert len(CASES) == 16


def test_step_profile_of_an_odd_number_of_classes() -> None:
    assert long_tailed_counts(100, 5, 10, "step") == [100, 100, 10, 10, 10]


def test_a_single_class_keeps_all() -> None:
    assert long_tailed_counts(7, 1, 100, "exp") == [7]


def test_another_seed_draws_other_pictures() -> None:
    labels = np.arange(1000) % 10
    first, second = (long_tailed_subset(labels, [50] * 10, seed) for seed in (0, 1))
    assert (labels[first] == labels[second]).all() and (first != second).any()


def test_negative_labels_belong_to_no_class() -> None:
    labels = np.array([-1, 0, 1, -1, 0])
    assert sorted(long_tailed_subset(labels, [2, 1], seed=3)) == [1, 2, 4]


@pytest.mark.parametrize("factor", [0.5, 0, -3, float("nan"), float("inf")])
def test_bad_imbalance_factor(factor: float) -> None:
    with pytest.raises(UserError, match=r"^data\.imbalance_factor=.*>= 1"):
        long_tailed_counts(500, 100, factor, "exp")


def test_unknown_profile() -> None:
    with pytest.raises(UserError, match=r"^data\.profile=pareto: expected exp or step$"):
        long_tailed_counts(500, 100, 10, "pareto")  # type: ignore[arg-type]


def test_more_pictures_than_there_are_and_bad_seed() -> None:
    with pytest.raises(UserError, match="class number 1: 3 pictures wanted of 2"):
        long_tailed_subset(np.array([0, 1, 1]), [1, 3], seed=0)
    with pytest.raises(UserError, match=r"^data\.subset_seed=-1"):
        long_tailed_subset(np.array([0]), [1], seed=-1)


def test_validation_is_stratified_and_leaves_every_class_a_training_picture() -> None:
    labels = np.repeat(np.arange(5), [100, 20, 3, 2, 1])
    train, val = carve_validation(labels, 0.1, seed=0)
    assert np.bincount(labels[val], minlength=5).tolist() == [10, 2, 1, 1, 0]
    assert sorted([*train, *val]) == list(range(len(labels)))
    _, most = carve_validation(labels, 0.99, seed=0)
    assert np.bincount(labels[most], minlength=5).tolist() == [99, 19, 2, 1, 0]


def test_validation_depends_on_the_seed_and_not_on_other_classes() -> None:
    labels = np.repeat(np.arange(3), 40)
    _, val = carve_validation(labels, 0.25, seed=0)
    assert (carve_validation(labels, 0.25, seed=0)[1] == val).all()
    assert (carve_validation(labels, 0.25, seed=1)[1] != val).any()
    _, val_of_two = carve_validation(labels[:80], 0.25, seed=0)
    assert (val_of_two == val[:20]).all()
    assert (val[:10] + 40 != val[10:20]).any()  # each class has its own draw


def test_no_validation() -> None:
    train, val = carve_validation(np.array([0, 0, 1]), 0.0, seed=0)
    assert train.tolist() == [0, 1, 2] and len(val) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_bad_fraction(fraction: float) -> None:
    with pytest.raises(UserError, match=r"^data\.val_fraction="):
        carve_validation(np.array([0, 0]), fraction, seed=0)
