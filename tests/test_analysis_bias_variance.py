"""The decompositions against their definitions in plain Python, their identities, their limits; bootstrap intervals."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from mdcs.analysis import bias_variance
from mdcs.analysis.bias_variance import STATISTICS, decompose, group_rows, over_runs, without_each
from mdcs.errors import UserError
from mdcs.evaluation.predictions import Predictions
from mdcs.types import Classes

CLASSES = Classes(tuple("abcde"), torch.tensor([150, 120, 60, 9, 4]))


def predictions_of(logits_NKC: Tensor, labels_N: Tensor) -> Predictions:
    return Predictions(logits_NKC.numpy(), labels_N.numpy(), np.arange(len(labels_N)), [f"{i}.png" for i in range(len(labels_N))])


def example(num_runs: int = 5, num_pictures: int = 80, num_experts: int = 2) -> list[Predictions]:
    generator = torch.Generator().manual_seed(2)
    labels_N = torch.arange(num_pictures) % 5
    shared = torch.randn(num_pictures, 1, 5, generator=generator) + F.one_hot(labels_N, 5)[:, None]
    noise = torch.randn(num_runs, num_pictures, num_experts, 5, generator=generator)
    return [predictions_of(shared + noise_NKC, labels_N) for noise_NKC in noise]


def test_each_statistic_is_its_definition() -> None:
    runs = example()
    ours = decompose(runs, CLASSES)
    assert list(ours) == ["ensemble", "expert 1", "expert 2"]
    for name, of_run in {"ensemble": lambda z: z.mean(0), "expert 2": lambda z: z[1]}.items():
        for n, label in enumerate(runs[0].labels):
            logits = [torch.from_numpy(of_run(run.logits[n])).double() for run in runs]
            probs = [z.softmax(-1).tolist() for z in logits]
            answers = [int(z.argmax()) for z in logits]
            geometric = [math.exp(sum(math.log(p[c]) for p in probs) / 5) for c in range(5)]
            q = [g / sum(geometric) for g in geometric]
            votes = Counter(answers)
            main = max(range(5), key=lambda c: (votes[c], q[c]))
            pairs = [answers[i] != answers[j] for i in range(5) for j in range(i)]
            expected = {
                "error": np.mean([a != label for a in answers]),
                "bias": float(main != label),
                "variance": np.mean([a != main for a in answers]),
                "disagreement": np.mean(pairs),
                "nll": -np.mean([math.log(p[label]) for p in probs]),
                "kl_bias": -math.log(q[label]),
                "kl_variance": np.mean([sum(q[c] * math.log(q[c] / p[c]) for c in range(5)) for p in probs]),
            }
            assert dict(zip(STATISTICS, ours[name][n], strict=True)) == pytest.approx(expected)


def test_identities() -> None:
    for values in decompose(example(), CLASSES).values():
        error, bias, variance, disagreement, nll, kl_bias, kl_variance = values.T
        assert np.allclose(nll, kl_bias + kl_variance) and (kl_variance > 0).all()
        assert np.allclose(error[bias == 0], variance[bias == 0])  # where the main prediction is right, to vary is to err
        assert (error[bias == 1] + variance[bias == 1] >= 1 - 1e-12).all()
        assert bias.mean() not in (0, 1) and ((disagreement == 0) == (variance == 0)).all()


def test_runs_that_are_equal_do_not_vary_and_their_order_does_not_matter() -> None:
    runs = example()
    values = decompose([runs[0]] * 3, CLASSES)["expert 1"]
    error, bias, variance, disagreement, nll, kl_bias, kl_variance = values.T
    assert np.array_equal(error, bias) and not variance.any() and not disagreement.any()
    assert np.allclose(kl_variance, 0, atol=1e-12) and np.allclose(nll, kl_bias)
    assert np.allclose(decompose(runs[::-1], CLASSES)["ensemble"], decompose(runs, CLASSES)["ensemble"])


def test_disagreement_is_unbiased_where_variance_is_not() -> None:
    """Answers drawn from a known distribution: P(two draws differ) for any number of runs; 1 − max p only for many."""
    probs = np.array([0.5, 0.3, 0.1, 0.06, 0.04])
    random = np.random.RandomState(0)
    found = {}
    for num_runs in (3, 200):
        answers = random.choice(5, p=probs, size=(num_runs, 2000))
        runs = [predictions_of(20.0 * F.one_hot(torch.from_numpy(a), 5)[:, None].float(), torch.zeros(2000).long()) for a in answers]
        found[num_runs] = dict(zip(STATISTICS, decompose(runs, CLASSES)["ensemble"].mean(0), strict=True))
    for statistics in found.values():
        assert statistics["disagreement"] == pytest.approx(1 - (probs**2).sum(), abs=0.02)
    assert found[200]["variance"] == pytest.approx(0.5, abs=0.01) and found[3]["variance"] < 0.45


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = decompose(example(), CLASSES)["ensemble"]
    monkeypatch.setattr(bias_variance, "CHUNK", 90)
    assert np.allclose(decompose(example(), CLASSES)["ensemble"], at_once)


def test_a_class_without_training_pictures_is_never_answered() -> None:
    untrained = Classes(CLASSES.names, torch.tensor([150, 120, 60, 9, 0]))
    values = decompose(example(), untrained)["ensemble"]
    labels = np.arange(80) % 5
    assert (values[labels == 4, STATISTICS.index("error")] == 1).all() and np.isfinite(values).all()


def test_refusals() -> None:
    runs = example()
    with pytest.raises(UserError, match="1 run: a variance needs at least two"):
        decompose(runs[:1], CLASSES)
    with pytest.raises(UserError, match="tested on different pictures"):
        decompose([runs[0], runs[1]._replace(labels=runs[1].labels[::-1].copy())], CLASSES)
    with pytest.raises(UserError, match=r"\(80, 1, 5\) and \(80, 2, 5\)"):
        decompose([runs[0], runs[1]._replace(logits=runs[1].logits[:, :1])], CLASSES)


def test_group_rows_average_as_scores_do() -> None:
    labels = np.array([0] * 30 + [1] * 10 + [2] * 5)
    values = np.arange(90.0).reshape(45, 2)
    table = group_rows(values, labels, CLASSES, resamples=200)
    assert np.allclose(table["all"][:, 0], values.mean(0))
    assert np.allclose(table["many"][:, 0], (values[:30].mean(0) + values[30:40].mean(0)) / 2)
    assert np.allclose(table["medium"][:, 0], values[40:].mean(0))
    assert table["few"] is None
    assert (table["all"][:, 1] < table["all"][:, 0]).all() and (table["all"][:, 0] < table["all"][:, 2]).all()


def test_intervals_cover() -> None:
    """95 % intervals of a mean of coin throws hold the truth in about 95 % of data sets, and are the same in every call."""
    random = np.random.RandomState(0)
    labels = np.zeros(100, dtype=np.int64)
    held = []
    for _ in range(100):
        table = group_rows((random.rand(100, 1) < 0.3).astype(float), labels, CLASSES, resamples=300)
        held.append(table["all"][0, 1] <= 0.3 <= table["all"][0, 2])
    assert 0.86 <= np.mean(held) <= 1
    values = random.rand(100, 1)
    assert np.array_equal(group_rows(values, labels, CLASSES)["all"], group_rows(values, labels, CLASSES)["all"])
    # paired differences have narrower intervals than what they are differences of
    paired = group_rows(values - (values + 0.01 * random.rand(100, 1)), labels, CLASSES)["all"][0]
    assert paired[2] - paired[1] < 0.2 * np.diff(group_rows(values, labels, CLASSES)["all"][0, 1:])[0]


def test_without_each_run_is_the_decomposition_of_the_others() -> None:
    runs = example(num_runs=5)
    values = without_each(runs, CLASSES)
    assert values.shape == (5, 80, len(STATISTICS))
    for m in range(5):
        others = decompose([run for other, run in enumerate(runs) if other != m], CLASSES)["ensemble"]
        assert np.allclose(values[m], others, rtol=1e-9, atol=1e-12)


def test_over_runs_is_the_jackknife() -> None:
    runs = example(num_runs=5)
    labels = runs[0].labels
    halves = over_runs(without_each(runs, CLASSES), labels, CLASSES)
    # The error is a mean over runs, for which the jackknife is the t interval of the runs' own errors.
    own = np.array([(run.logits.mean(1).argmax(-1) != labels).mean() for run in runs])
    low, high = stats.t.interval(0.95, 4, own.mean(), own.std(ddof=1) / math.sqrt(5))
    assert halves["all"][STATISTICS.index("error")] == pytest.approx((high - low) / 2)
    recall = np.array([[(run.logits.mean(1).argmax(-1) != labels)[labels == c].mean() for c in (3, 4)] for run in runs]).mean(1)
    assert halves["few"][0] == pytest.approx(stats.t.ppf(0.975, 4) * recall.std(ddof=1) / math.sqrt(5))
    kept = np.flatnonzero(labels < 3)
    fewer = [Predictions(run.logits[kept], labels[kept], np.arange(len(kept)), [run.paths[n] for n in kept]) for run in runs]
    assert over_runs(without_each(fewer, CLASSES), labels[kept], CLASSES)["few"] is None
