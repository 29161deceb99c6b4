"""Intervals and tests against scipy, and against what they must do when the truth is known."""

import numpy as np
import pytest
import torch
from scipy import stats

from mdcs.evaluation.significance import bootstrap_intervals, holm, mcnemar, paired_bootstrap, paired_t
from mdcs.types import Classes

CLASSES = Classes(("a", "b", "c", "d"), torch.tensor([200, 150, 50, 5]))


def answers(num_pictures: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels, hits and confidences."""
    random = np.random.RandomState(seed)
    labels, confidence = np.arange(num_pictures) % 4, random.rand(num_pictures).astype(np.float32)
    return torch.from_numpy(labels), torch.from_numpy(random.rand(num_pictures) < confidence), torch.from_numpy(confidence)


def test_bootstrap_of_accuracy_is_binomial() -> None:
    labels_N, hit_N, confidence_N = answers()
    lower, upper = bootstrap_intervals(labels_N, hit_N, confidence_N, CLASSES)["accuracy"]
    exact = stats.binom.ppf([0.025, 0.975], 400, hit_N.double().mean().item()) / 400
    assert (lower, upper) == pytest.approx(exact, abs=0.006)
    scipys = stats.bootstrap((hit_N.double().numpy(),), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(0))
    assert (lower, upper) == pytest.approx(tuple(scipys.confidence_interval), abs=0.006)


def test_bootstrap_of_groups_and_ece() -> None:
    labels_N, hit_N, confidence_N = answers()
    intervals = bootstrap_intervals(labels_N, hit_N, confidence_N, CLASSES)
    many_N = labels_N < 2
    scipys = stats.bootstrap(
        (hit_N[many_N].double().numpy(),), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(0)
    )
    assert intervals["accuracy_many"] == pytest.approx(list(scipys.confidence_interval), abs=0.012)
    assert set(intervals) == {"accuracy", "accuracy_many", "accuracy_medium", "accuracy_few", "balanced_accuracy", "ece"}
    assert 0 < intervals["ece"][0] < intervals["ece"][1] < 0.2
    calm_N = 0.5 * torch.ones(400)  # right in exactly half of the cases: every resample is calibrated worse
    right_N = torch.arange(400) % 2 == 0
    lower, upper = bootstrap_intervals(labels_N, right_N, calm_N, CLASSES)["ece"]
    assert lower == 0 < upper < 0.04
    assert intervals == bootstrap_intervals(labels_N, hit_N, confidence_N, CLASSES)  # keyed
    without_few = labels_N < 3
    assert bootstrap_intervals(labels_N[without_few], hit_N[without_few], confidence_N[without_few], CLASSES)["accuracy_few"] is None


def test_certain_answers_have_no_width() -> None:
    labels_N, _, confidence_N = answers(40)
    intervals = bootstrap_intervals(labels_N, torch.ones(40, dtype=torch.bool), confidence_N, CLASSES)
    assert intervals["accuracy"] == intervals["accuracy_few"] == [1.0, 1.0]


def test_mcnemar_is_the_exact_binomial_test() -> None:
    random = np.random.RandomState(0)
    for n in (3, 20, 300):
        one, other = random.rand(n) < 0.8, random.rand(n) < 0.7
        b, c, p = mcnemar(one, other)
        assert (b, c) == (np.sum(one & ~other), np.sum(~one & other))
        assert p == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1)
    assert mcnemar(one, one) == (0, 0, 1.0)


def test_paired_bootstrap_agrees_with_drawing_pictures() -> None:
    random = np.random.RandomState(0)
    differences = random.choice([-1.0, -0.5, 0.0, 0.5, 1.0], size=500, p=[0.05, 0.1, 0.6, 0.15, 0.1])
    interval, p = paired_bootstrap(differences)
    scipys = stats.bootstrap((differences,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0))
    assert interval == pytest.approx(list(scipys.confidence_interval), abs=0.003)
    assert p == pytest.approx(2 * stats.norm.sf(differences.mean() / (differences.std() / 500**0.5)), abs=0.02)
    assert paired_bootstrap(np.zeros(10)) == ([0.0, 0.0], 1.0)
    assert paired_bootstrap(np.ones(10))[1] == pytest.approx(2 / 10_001)
    assert paired_bootstrap(-differences)[0] == pytest.approx([-interval[1], -interval[0]], abs=0.003)


def test_p_values_are_uniform_without_a_difference() -> None:
    p_values = [paired_bootstrap(np.random.RandomState(seed).choice([-1, 0, 1], size=400, p=[0.2, 0.6, 0.2]))[1] for seed in range(200)]
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.1


def test_paired_t_is_scipys() -> None:
    one, other = np.array([0.91, 0.93, 0.92, 0.95]), np.array([0.90, 0.91, 0.93, 0.92])
    ours, scipys = paired_t(one - other), stats.ttest_rel(one, other)
    assert ours["p"] == pytest.approx(scipys.pvalue) and ours["mean"] == pytest.approx((one - other).mean())
    assert ours["interval"] == pytest.approx([scipys.confidence_interval().low, scipys.confidence_interval().high])
    assert (ours["n"], ours["signs"]) == (4, 3)
    assert paired_t([0.1]) == {"mean": 0.1, "interval": None, "p": None, "n": 1, "unequal": 1, "signs": 1}
    assert paired_t([0.25, 0.25])["p"] is None


def test_ties_speak_for_neither_side() -> None:
    tied = paired_t([0.02, 0.0, 0.01, -0.01, 1e-17])
    assert (tied["n"], tied["unequal"], tied["signs"]) == (5, 3, 2)
    level = paired_t([0.1, -0.1, 0.3, -0.3])
    assert (level["mean"], level["unequal"], level["signs"]) == (0.0, 4, None)
    none = paired_t([0.0, 0.0])
    assert (none["unequal"], none["signs"], none["p"]) == (0, None, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04] and holm([]) == []
