"""How good is the classifier where classes are as frequent as in training, equally frequent, or the other way round?

A test set of another class distribution is a weighting of the stored test pictures, so one prediction serves them all.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdcs.evaluation.combine import agreement_weights, combine
from mdcs.evaluation.predictions import Predictions
from mdcs.evaluation.shift import bbse_prior, correction, em_prior
from mdcs.randomness import key
from mdcs.types import Classes

RATIOS = (50, 25, 10, 5, 2)  # CIFAR-100, ImageNet, Places
RATIOS_OF_SMALL = (3, 2)  # fewer than five test pictures a class: iNaturalist
DIRICHLETS = 10  # priors drawn, uniformly from all there are
MOST_POSTERIORS = 2**28  # probabilities kept for EM: 512 MiB of float16; of more pictures than that, every second, third ... is used


def ratio_counts(available: float, num_classes: int, ratio: float) -> list[int]:
    """Pictures of each class of the "forward-r" test set, most frequent class first; reversed it is "backward-r".

    n_c = int(n_max · r^(−c/(C−1))): the published code of SADE (arXiv:2107.09249) makes training and test sets by the same rule.
    """
    rho = 1 / ratio
    return [int(available * rho ** (c / max(num_classes - 1.0, 1.0))) for c in range(num_classes)]


def draw(labels: NDArray[np.int64], counts: list[int], seed: int = 0) -> NDArray[np.int64]:
    """Positions (Σ counts,) of pictures with `counts[c]` of class c, class after class, as the published code draws them with seed 0.

    For each class its positions are shuffled by one RandomState(seed) and the first counts[c] are taken.
    """
    random, chosen = np.random.RandomState(seed), []
    for label, count in enumerate(counts):
        positions = np.flatnonzero(labels == label)
        random.shuffle(positions)
        chosen.append(positions[:count])
    return np.concatenate(chosen).astype(np.int64)


def listed(index: NDArray[np.int64], num_pictures: int) -> Tensor:
    """(N,) weights, of sum 1, of a test set that is a list of positions in the stored one; a position may occur several times."""
    return torch.from_numpy(np.bincount(index, minlength=num_pictures) / len(index))


def target_priors(classes: Classes, support_C: Tensor) -> dict[str, Tensor]:
    """Class priors (C,) of the test distributions by name: forward-50 ... uniform ... backward-50, and the drawn ones dirichlet-1 ...

    "Forward" is frequent where training was frequent: the classes are taken by their number of training pictures, so the order in which a
    dataset happens to list them does not matter (equal ones in that order; for CIFAR-LT it is the published order). Ratios that would
    leave a class without a picture are left out. Classes without test pictures have prior 0.
    """
    seen_C = support_C > 0
    order = classes.counts.argsort(descending=True, stable=True)
    order = order[seen_C[order]]
    available = support_C.sum().item() / max(len(order), 1)
    ratios = [ratio for ratio in (RATIOS if available >= 5 else RATIOS_OF_SMALL) if ratio_counts(available, 2, ratio)[-1] > 0]

    def prior(sizes: Any) -> Tensor:
        prior_C = torch.zeros(len(classes), dtype=torch.float64)
        prior_C[order] = torch.as_tensor(np.asarray(sizes, dtype=np.float64))
        return prior_C / prior_C.sum()

    counts = {ratio: ratio_counts(available, len(order), ratio) for ratio in ratios}
    priors = {f"forward-{ratio}": prior(counts[ratio]) for ratio in ratios} | {"uniform": prior(np.ones(len(order)))}
    priors |= {f"backward-{ratio}": prior(counts[ratio][::-1]) for ratio in reversed(ratios)}
    for number in range(1, DIRICHLETS + 1):
        random = np.random.Generator(np.random.PCG64(key(0, "dirichlet", number)))
        priors[f"dirichlet-{number}"] = prior(random.dirichlet(np.ones(len(order))))
    return priors


def agnostic(
    predictions: Predictions,
    classes: Classes,
    implied_C: Tensor | None = None,
    validation: Predictions | None = None,
    views_N2KC: NDArray[Any] | None = None,
    lists: Mapping[str, NDArray[np.int64]] | None = None,
) -> list[dict[str, Any]]:
    """Accuracy on each test distribution: one row each (the drawn ones in one), one key for each way to answer.

    average      argmax z̄, z̄ the mean of the experts' logits: knows nothing
    known_prior  argmax z̄ + log π − log q: knows the test prior π; q is `implied` (C,), the prior that z̄ implies (None: uniform)
    em           the same with π estimated from the unlabelled pictures by EM
    bbse         the same with π estimated by BBSE, whose confusion matrix needs labelled `validation` pictures of each class; else None
    agreement    argmax Σ_k w_k z_k with SADE's weights, from the logits of two `views` (N, 2, K, C); else None
    effective_n  (Σ w)²/Σ w², the number of equally weighted pictures that would be as many

    Each picture counts w_i = π_y/n_y: what a drawn subset would give on average, without the noise of one draw. The estimates of π see
    all pictures in that weighting, so they are steadier than from one small subset. The row "dirichlet" has the means over 10 drawn priors,
    and the standard deviations under "sd". `lists` adds test sets given as positions, for example of a published list file.
    """
    labels_N = torch.from_numpy(predictions.labels)
    num_pictures, _, num_classes = predictions.logits.shape
    support_C = torch.bincount(labels_N, minlength=num_classes)
    if not num_pictures:
        return []
    trained_C = (classes.counts > 0).double()
    implied_C = trained_C / trained_C.sum() if implied_C is None else implied_C / implied_C.sum()
    prior_of = target_priors(classes, support_C)
    weight_of = {name: prior_C[labels_N] / support_C[labels_N] for name, prior_C in prior_of.items()}
    for name, index in (lists or {}).items():
        weight_of[name] = listed(index, num_pictures)
        prior_of[name] = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, labels_N, weight_of[name])
    weights_NJ = torch.stack(list(weight_of.values()), 1)

    kept = KeptPosteriors(predictions, classes)
    answers_N = kept.answers_N
    estimates = {"known_prior": torch.stack(list(prior_of.values()))}
    of_kept_NJ = weights_NJ[:: kept.stride].float()
    estimates["em"] = em_prior(kept, of_kept_NJ / of_kept_NJ.sum(0), implied_C)
    if validation is not None:
        answered_JC = torch.zeros(num_classes, weights_NJ.shape[1], dtype=torch.float64).index_add_(0, answers_N, weights_NJ).T
        bbse_JC = bbse_prior(torch.from_numpy(validation.labels), answers(validation, classes), answered_JC)
        estimates |= {} if bbse_JC is None else {"bbse": bbse_JC}
    del kept

    right = {"average": (answers_N == labels_N)[:, None].expand_as(weights_NJ)}
    offsets = {name: torch.stack([correction(prior_C, implied_C) for prior_C in prior_JC]) for name, prior_JC in estimates.items()}
    right |= corrected_hits(predictions, classes, offsets)
    if views_N2KC is not None:
        weights_JK = torch.stack([agreement_weights(views_N2KC, weights_N.float()) for weights_N in weights_NJ.T])
        right["agreement"] = weighted_hits(predictions, classes, weights_JK)
    accuracy = {method: (hits_NJ.double() * weights_NJ).sum(0) for method, hits_NJ in right.items()}
    effective_J = weights_NJ.sum(0) ** 2 / weights_NJ.square().sum(0)
    methods = ("average", "known_prior", "em", "bbse", "agreement")
    rows: list[dict[str, Any]] = []
    for j, name in enumerate(weight_of):
        if not name.startswith("dirichlet-"):
            values = {method: accuracy[method][j].item() if method in accuracy else None for method in methods}
            rows.append({"name": name, "effective_n": round(effective_J[j].item(), 1), **values})
            if views_N2KC is not None:
                rows[-1]["agreement_weights"] = weights_JK[j].tolist()
    drawn = [j for j, name in enumerate(weight_of) if name.startswith("dirichlet-")]
    mean = {method: accuracy[method][drawn].mean().item() if method in accuracy else None for method in methods}
    spread = {method: accuracy[method][drawn].std().item() if method in accuracy else None for method in methods}
    return [*rows, {"name": "dirichlet", "effective_n": round(effective_J[drawn].mean().item(), 1), **mean, "sd": spread}]


class KeptPosteriors:
    """softmax(z̄) of the pictures (of every `stride`-th, if there is no room for more) in float16, for the walks of EM; and argmax z̄."""

    def __init__(self, predictions: Predictions, classes: Classes) -> None:
        num_pictures, _, num_classes = predictions.logits.shape
        self.stride = -(-num_pictures * num_classes // MOST_POSTERIORS)
        self.probs_NC = torch.empty(-(-num_pictures // self.stride), num_classes, dtype=torch.float16)
        self.answers_N = torch.empty(num_pictures, dtype=torch.int64)
        for rows, logits_NKC in predictions.chunks(classes):
            mean_NC = combine(logits_NKC)
            self.answers_N[rows] = torch.from_numpy(mean_NC.numpy().argmax(-1))
            kept = torch.arange(-(-rows.start // self.stride), -(-rows.stop // self.stride))
            self.probs_NC[kept] = mean_NC[kept * self.stride - rows.start].softmax(-1).half()

    def __call__(self) -> Iterator[tuple[slice, Tensor]]:
        step = max(1, 2**21 // self.probs_NC.shape[1])
        for start in range(0, len(self.probs_NC), step):
            rows = slice(start, start + step)
            yield rows, self.probs_NC[rows].float()


def answers(predictions: Predictions, classes: Classes) -> Tensor:
    """(N,) int64 argmax of the mean of the experts' logits."""
    return torch.cat([torch.from_numpy(combine(logits_NKC).numpy().argmax(-1)) for _, logits_NKC in predictions.chunks(classes)])


def corrected_hits(predictions: Predictions, classes: Classes, offsets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(N, J) bool for each (J, C) of `offsets`: whether argmax z̄ + offset is right."""
    labels = predictions.labels
    right = {name: torch.empty(len(labels), len(offsets_JC), dtype=torch.bool) for name, offsets_JC in offsets.items()}
    for rows, logits_NKC in predictions.chunks(classes):
        mean_NC = combine(logits_NKC).numpy()
        shifted_NC = np.empty_like(mean_NC)
        for name, offsets_JC in offsets.items():
            for j, offset_C in enumerate(offsets_JC.float().numpy()):
                np.add(mean_NC, offset_C, out=shifted_NC)
                right[name][rows, j] = torch.from_numpy(shifted_NC.argmax(-1) == labels[rows])
    return right


def weighted_hits(predictions: Predictions, classes: Classes, weights_JK: Tensor) -> Tensor:
    """(N, J) bool: whether argmax Σ_k w_jk z_k is right."""
    hits_NJ = torch.empty(len(predictions.labels), len(weights_JK), dtype=torch.bool)
    for rows, logits_NKC in predictions.chunks(classes):
        for j, weights_K in enumerate(weights_JK):
            answer = combine(logits_NKC, weights_K).numpy().argmax(-1)
            hits_NJ[rows, j] = torch.from_numpy(answer == predictions.labels[rows])
    return hits_NJ
