"""Does a method answer alike when its training pictures are drawn anew? Bias and variance over runs on independently drawn subsets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdcs.errors import UserError
from mdcs.evaluation.combine import combine
from mdcs.evaluation.predictions import CHUNK, UNTRAINED, Predictions
from mdcs.randomness import key
from mdcs.types import Classes

STATISTICS = ("error", "bias", "variance", "disagreement", "nll", "kl_bias", "kl_variance")
RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 50  # resamples at once


def decompose(runs: Sequence[Predictions], classes: Classes) -> dict[str, NDArray[np.float64]]:
    """For the ensemble and each expert of M runs, the STATISTICS of each picture: (N, 7).

    With answers a_m and probabilities p_m of the M runs, and the true class y:

    error         mean_m 1[a_m ≠ y]
    bias          1[ȧ ≠ y], ȧ the mode of a_m: the main prediction (Domingos 2000, 0-1 loss; in long-tailed recognition arXiv:2010.01809)
    variance      mean_m 1[a_m ≠ ȧ]
    disagreement  share of pairs of runs with a_m ≠ a_m'. The mode of M answers fits them, which makes `variance` too small for few runs;
                  this is unbiased for any M
    nll           −mean_m log p_m(y), nats
    kl_bias       −log q(y), q ∝ exp mean_m log p_m: the main prediction under KL (Heskes 1998)
    kl_variance   mean_m KL(q ‖ p_m); nll = kl_bias + kl_variance exactly

    The error is not bias + variance: where ȧ is wrong, varying can only help. If two answers are given equally often, ȧ is the one with
    the larger q. Refused: fewer than two runs, or runs that were tested on different pictures.
    """
    require_same_test(runs)
    num_pictures, num_experts, _ = runs[0].logits.shape
    names = ["ensemble", *(f"expert {k}" for k in range(1, num_experts + 1))]
    values = {name: np.empty((num_pictures, len(STATISTICS))) for name in names}
    for rows, logits_MNKC, labels_N in together(runs, classes):
        for name, logits_MNC in zip(names, [combine(logits_MNKC), *logits_MNKC.unbind(2)], strict=True):
            values[name][rows] = of_pictures(*summed(logits_MNC.double().log_softmax(-1)), len(runs), labels_N).numpy()
    return values


def without_each(runs: Sequence[Predictions], classes: Classes) -> NDArray[np.float64]:
    """The ensemble's `decompose` without each of at least three runs: (M, N, 7)."""
    require_same_test(runs)
    values = np.empty((len(runs), len(runs[0].labels), len(STATISTICS)))
    for rows, logits_MNKC, labels_N in together(runs, classes):
        log_probs_MNC = combine(logits_MNKC).double().log_softmax(-1)
        sum_NC, votes_NC = summed(log_probs_MNC)
        for m, log_probs_NC in enumerate(log_probs_MNC):
            own_sum_NC, own_votes_NC = summed(log_probs_NC[None])
            values[m, rows] = of_pictures(sum_NC - own_sum_NC, votes_NC - own_votes_NC, len(runs) - 1, labels_N).numpy()
    return values


def together(runs: Sequence[Predictions], classes: Classes) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Positions, the logits (M, n, K, C) of all runs, and labels (n,), so many pictures at a time as fit."""
    num_pictures, num_experts, num_classes = runs[0].logits.shape
    step = max(1, 4 * CHUNK // (len(runs) * num_experts * num_classes))
    for start in range(0, num_pictures, step):
        rows = slice(start, start + step)
        logits_MNKC = torch.from_numpy(np.stack([run.logits[rows] for run in runs])).float()
        logits_MNKC[..., classes.counts == 0] = UNTRAINED
        yield rows, logits_MNKC, torch.from_numpy(runs[0].labels[rows])


def summed(log_probs_MNC: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) sums over runs of the log-probabilities and of the answers: all that the decompositions read."""
    answers_NM = log_probs_MNC.argmax(-1).T
    votes_NC = torch.zeros_like(log_probs_MNC[0]).scatter_add_(1, answers_NM, torch.ones_like(answers_NM, dtype=log_probs_MNC.dtype))
    return log_probs_MNC.sum(0), votes_NC


def of_pictures(sum_NC: Tensor, votes_NC: Tensor, num_runs: int, labels_N: Tensor) -> Tensor:
    """(N, 7) STATISTICS of one answerer from the sums over its runs."""
    mean_NC = sum_NC / num_runs
    log_q_NC = mean_NC.log_softmax(-1)
    main_N = (votes_NC + 0.5 * log_q_NC.exp()).argmax(-1)  # q <= 1, so it decides between equal votes only
    same_N = (votes_NC * (votes_NC - 1)).sum(-1) / (num_runs * (num_runs - 1))
    right_N, as_main_N, nll_N, kl_bias_N = (
        of_NC.gather(1, at_N[:, None])[:, 0]
        for of_NC, at_N in ((votes_NC, labels_N), (votes_NC, main_N), (-mean_NC, labels_N), (-log_q_NC, labels_N))
    )
    return torch.stack(
        [
            1 - right_N / num_runs,
            (main_N != labels_N).double(),
            1 - as_main_N / num_runs,
            1 - same_N,
            nll_N,
            kl_bias_N,
            (log_q_NC.exp() * (log_q_NC - mean_NC)).sum(-1),
        ],
        -1,
    )


def over_runs(values_MNV: NDArray[np.float64], labels: NDArray[np.int64], classes: Classes) -> dict[str, NDArray[np.float64] | None]:
    """Half the widths (V,) of 95 % t intervals for `group_rows`, from leave-one-run-out values (the jackknife, Tukey 1958).

    They say how far other training subsets may move the means, given these test pictures; roughly for `bias` and `variance`, whose mode
    jumps.
    Values of two methods on the same subsets may be subtracted before.
    """
    from scipy import stats

    num_runs, support_C = len(values_MNV), np.bincount(labels, minlength=len(classes))
    factor = float(stats.t.ppf((1 + LEVEL) / 2, num_runs - 1)) * np.sqrt((num_runs - 1) / num_runs)
    halves: dict[str, NDArray[np.float64] | None] = {}
    for name, weights_N in group_weights(labels, support_C, classes).items():
        if not weights_N.any():
            halves[name] = None
            continue
        means_MV = np.einsum("n,mnv->mv", weights_N / weights_N.sum(), values_MNV)
        halves[name] = factor * np.sqrt(((means_MV - means_MV.mean(0)) ** 2).sum(0))
    return halves


def group_weights(labels: NDArray[np.int64], support_C: NDArray[np.int64], classes: Classes) -> dict[str, NDArray[np.float64]]:
    """(N,) weights that average over pictures ("all"), or over the classes of a group."""
    weights = {"all": np.ones(len(labels))}
    return weights | {name: group_C.numpy()[labels] / support_C[labels] for name, group_C in classes.groups.items()}


def group_rows(values_NV: NDArray[np.float64], labels: NDArray[np.int64], classes: Classes, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Means of (N, V) per-picture values with 95 % bootstrap intervals over pictures: {"all": (V, 3) or None, "many": ...}.

    "all" is the mean over pictures, a group the mean over its classes' means, as in scores.json; None for a group without pictures. The
    last axis is mean, lower, upper. The resamples are the same in every call with as many pictures, so the values of two methods can be
    subtracted before: a paired difference. The intervals say how far other test pictures may lie, given these runs, not other runs.
    """
    support_C = np.bincount(labels, minlength=len(classes))
    weights = group_weights(labels, support_C, classes)
    weights_NG = np.stack(list(weights.values()), 1)
    weighted = np.concatenate([weights_NG, *(weights_NG * values_NV[:, [v]] for v in range(values_NV.shape[1]))], 1)
    drawn = []
    for first in range(0, resamples, BLOCK):
        times_RN = np.stack([multiplicities(len(labels), r) for r in range(first, min(first + BLOCK, resamples))])
        drawn.append(times_RN @ weighted)
    sums_RVG = np.concatenate([weighted.sum(0)[None], *drawn]).reshape(resamples + 1, -1, len(weights))
    table: dict[str, Any] = {}
    for g, name in enumerate(weights):
        if not weights_NG[:, g].any():
            table[name] = None
            continue
        kept = sums_RVG[:, 0, g] > 0  # a resample may miss a small group
        means_RV = sums_RVG[kept, 1:, g] / sums_RVG[kept, :1, g]
        bounds = np.quantile(means_RV[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        table[name] = np.concatenate([means_RV[:1], bounds]).T
    return table


def multiplicities(num_pictures: int, resample: int) -> NDArray[np.float64]:
    """(N,) how often each picture is drawn in a resample."""
    random = np.random.Generator(np.random.PCG64(key(0, "bootstrap", resample)))
    return np.bincount(random.integers(num_pictures, size=num_pictures), minlength=num_pictures).astype(np.float64)


def require_same_test(runs: Sequence[Predictions]) -> None:
    """Refuse what cannot be decomposed."""
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run: a variance needs at least two, trained on subsets drawn anew (data.subset_seed)")
    shapes = {run.logits.shape for run in runs}
    if len(shapes) > 1:
        raise UserError(f"runs with different predictions, (pictures, experts, classes) are {' and '.join(map(str, sorted(shapes)))}")
    if len({run.sha256() for run in runs}) > 1:
        raise UserError(
            "the runs were tested on different pictures (test_set_sha256 differs), a variance needs one test set: data.subset_seed "
            "changes the training pictures only, another data.root or data.classes the test"
        )
