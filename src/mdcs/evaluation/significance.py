"""Is it luck? Intervals and tests over pictures (one set of trained models) and over seeds (training repeated)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mdcs.evaluation.calibration import NUM_BINS, bin_of
from mdcs.randomness import key
from mdcs.types import Classes

RESAMPLES = 1000
PAIRED_RESAMPLES = 10_000
LEVEL = 0.95
ROUNDING = 1e-12  # differences below are those of floating-point numbers


def bootstrap_intervals(
    labels_N: Tensor, hit_N: Tensor, confidence_N: Tensor, classes: Classes, resamples: int = RESAMPLES
) -> dict[str, list[float] | None]:
    """95 % percentile intervals over pictures of accuracy, accuracy_many ..., balanced_accuracy and ece: [lower, upper], or None.

    Each resample draws N pictures with replacement, under a key of its own, so the intervals are the same in every call. A class that a
    resample misses does not count in it. They say how far another test set of this size may lie, not another training. ECE grows under
    resampling, which adds chance to each bin: its resamples are moved so that their mean is the ECE itself (0 at least).
    """
    labels, hits, num_pictures = labels_N.numpy(), hit_N.numpy().astype(np.float64), len(labels_N)
    groups = {"balanced_accuracy": np.ones(len(classes), dtype=bool)}
    groups |= {f"accuracy_{name}": group_C.numpy() for name, group_C in classes.groups.items()}
    if not num_pictures:
        return dict.fromkeys(["accuracy", *groups, "ece"])
    bins, gaps = bin_of(confidence_N).numpy(), hits - confidence_N.double().numpy()
    drawn: dict[str, list[float]] = {name: [] for name in ("accuracy", *groups, "ece")}
    for resample in range(resamples):
        random = np.random.Generator(np.random.PCG64(key(0, "bootstrap", resample)))
        times_N = np.bincount(random.integers(num_pictures, size=num_pictures), minlength=num_pictures).astype(np.float64)
        support_C = np.bincount(labels, times_N, len(classes))
        hits_C = np.bincount(labels, times_N * hits, len(classes))
        recall_C = hits_C / np.maximum(support_C, 1)
        drawn["accuracy"].append(float(hits_C.sum()) / num_pictures)
        for name, group_C in groups.items():
            seen_C = group_C & (support_C > 0)
            if seen_C.any():
                drawn[name].append(float(recall_C[seen_C].mean()))
        drawn["ece"].append(float(np.abs(np.bincount(bins, times_N * gaps, NUM_BINS)).sum()) / num_pictures)
    ece = float(np.abs(np.bincount(bins, gaps, NUM_BINS)).sum()) / num_pictures
    drawn["ece"] = np.maximum(np.array(drawn["ece"]) + ece - np.mean(drawn["ece"]), 0).tolist()
    return {name: percentiles(np.array(values)) if values else None for name, values in drawn.items()}


def percentiles(values: NDArray[Any]) -> list[float]:
    """The middle 95 %: [lower, upper]."""
    return [float(np.quantile(values, (1 - LEVEL) / 2)), float(np.quantile(values, (1 + LEVEL) / 2))]


def mcnemar(hit_N: NDArray[Any], other_N: NDArray[Any]) -> tuple[int, int, float]:
    """Pictures that only the first gets right, only the other, and the two-sided exact p-value of McNemar's test.

    Given b + c such pictures, b is Binomial(b + c, 1/2) if both are equally good: p = min(1, 2 P(X <= min(b, c))); 1 if there are none.
    """
    from scipy.stats import binom

    b, c = int((hit_N & ~other_N).sum()), int((other_N & ~hit_N).sum())
    return b, c, min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5))) if b + c else 1.0


def paired_bootstrap(differences_N: NDArray[Any], resamples: int = PAIRED_RESAMPLES) -> tuple[list[float], float]:
    """95 % interval of the mean of paired `differences` over pictures, and a two-sided p-value for a mean of 0.

    p = 2 (1 + min(#{mean* <= 0}, #{mean* >= 0})) / (1 + resamples), at most 1. Differences take few values (right minus wrong, averaged
    over the seeds), so a resample draws how often each occurs: the same distribution as drawing pictures, without N draws.
    """
    values, counts = np.unique(differences_N, return_counts=True)
    random = np.random.Generator(np.random.PCG64(key(0, "paired bootstrap")))
    total = len(differences_N)
    means = random.multinomial(total, counts / total, size=resamples) @ values / total
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return percentiles(means), min(1.0, 2 * (1 + tail) / (1 + resamples))


def paired_t(differences: Sequence[float]) -> dict[str, Any]:
    """Paired t test over seeds: `mean`, `interval` (95 %), `p`, `n`; `unequal`, how many of the n are not 0, and `signs`, how many of those
    have the sign of the mean (None if it is 0). A seed without a difference speaks for neither, so it counts in neither of the two.

    With one seed there is no spread, so interval and p are None; likewise p if all differences are equal.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    values = np.where(np.abs(values) < ROUNDING, 0.0, values)
    n, mean = len(values), float(values.mean())
    mean = 0.0 if abs(mean) < ROUNDING else mean
    unequal = int((values != 0).sum())
    found = {"mean": mean, "n": n, "unequal": unequal, "signs": int((np.sign(values) == np.sign(mean)).sum()) if mean else None}
    if n < 2:
        return {**found, "interval": None, "p": None}
    error = float(values.std(ddof=1)) / n**0.5
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error > ROUNDING else None
    return {**found, "interval": [mean - half, mean + half], "p": p}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction for as many tests as there are p-values; None stays None and does not count.

    The i-th smallest of m becomes max over j <= i of min(1, (m − j + 1) p_(j)).
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected
