"""How different the experts are: from their logits, and from their features where those are stored."""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdcs.evaluation.predictions import CHUNK, Predictions
from mdcs.types import Classes

PAIRWISE = ("disagreement", "kl", "js")
COLUMNS = (*PAIRWISE, "kappa", "recall_sd", "oracle_gap", "agreement", "sole_best")


class DiversitySums:
    """Diversity of K experts over the pictures of a split, in chunks: `update` with (n, K, C) log-probabilities, then `means` or `table`.

    P pairs of experts, G = 4 sets of pictures: all, and those of many-, medium- and few-shot classes. Without `classes` all are one set.
    """

    def __init__(self, classes: Classes | None = None) -> None:
        self.classes = classes
        self.support_C = torch.zeros(0, dtype=torch.int64)

    def update(self, log_probs_NKC: Tensor, labels_N: Tensor | None = None) -> None:
        """`labels` are needed for `table` only."""
        num_pictures, num_experts, num_classes = log_probs_NKC.shape
        pairs = list(combinations(range(num_experts), 2))
        if not len(self.support_C):
            groups = [] if self.classes is None else list(self.classes.groups.values())
            self.groups_GC = torch.stack([torch.ones(num_classes, dtype=torch.bool), *groups])
            self.sums_GP3 = torch.zeros(len(self.groups_GC), len(pairs), len(PAIRWISE), dtype=torch.float64)
            self.answered_GKC = torch.zeros(len(self.groups_GC), num_experts, num_classes, dtype=torch.int64)
            self.hits_CJ = torch.zeros(num_classes, num_experts + 2, dtype=torch.int64)  # ensemble, experts, any expert
            self.support_C = torch.zeros(num_classes, dtype=torch.int64)
        if labels_N is None:
            labels_N = torch.zeros(num_pictures, dtype=torch.int64)
        # Normalising each expert adds a constant to a picture's mean logits, so this is the answer of the ensemble.
        answers_NJ = torch.from_numpy(np.concatenate([log_probs_NKC.mean(1, keepdim=True), log_probs_NKC], 1).argmax(-1))

        probs_NKC = log_probs_NKC.exp()
        negentropy_NK = (probs_NKC * log_probs_NKC).sum(-1)
        values_NP3 = torch.zeros(num_pictures, len(pairs), len(PAIRWISE), dtype=torch.float64)
        for p, (j, k) in enumerate(pairs):
            mixed_NC = 0.5 * (probs_NKC[:, j] + probs_NKC[:, k])
            values_NP3[:, p, 0] = (answers_NJ[:, j + 1] != answers_NJ[:, k + 1]).double()
            # KL(p‖q) + KL(q‖p) = Σ (p − q)(log p − log q); half of it is the mean over the two orders.
            values_NP3[:, p, 1] = 0.5 * ((probs_NKC[:, j] - probs_NKC[:, k]) * (log_probs_NKC[:, j] - log_probs_NKC[:, k])).sum(-1)
            values_NP3[:, p, 2] = 0.5 * (negentropy_NK[:, j] + negentropy_NK[:, k]) - torch.xlogy(mixed_NC, mixed_NC).sum(-1)

        member_GN = self.groups_GC[:, labels_N]
        self.sums_GP3 += torch.einsum("gn,npv->gpv", member_GN.double(), values_NP3)
        for g, member_N in enumerate(member_GN):
            for k in range(num_experts):
                self.answered_GKC[g, k] += torch.bincount(answers_NJ[member_N, k + 1], minlength=num_classes)
        hit_NJ = answers_NJ == labels_N[:, None]
        hit_NJ = torch.cat([hit_NJ, hit_NJ[:, 1:].any(1, keepdim=True)], 1)
        self.hits_CJ.index_add_(0, labels_N, hit_NJ.long())
        self.support_C += torch.bincount(labels_N, minlength=num_classes)

    def means(self) -> dict[str, float | None]:
        """Over all pictures and pairs: `disagreement` as a fraction, `kl` in nats; None for a single expert."""
        return {name: self._pairwise(0)[name] for name in ("disagreement", "kl")}

    def table(self) -> dict[str, Any]:
        """Overall and, under "groups", for each shot group (None for one without pictures).

        disagreement  how often the two experts of a pair answer differently, mean over pairs
        kl, js        KL(p_j ‖ p_k), mean over both orders of a pair, and Jensen-Shannon divergence, in nats
        kappa         Cohen's κ of a pair, (o − e)/(1 − e), o the agreement and e what their frequencies of answers give by chance; mean
                      over the pairs with e < 1
        recall_sd     standard deviation over the experts (divided by K) of a class's recall, mean over classes. Our candidate for the
                      paper's σ (arXiv:2308.09922, supplement, Table 1), whose formula we could not read
        oracle_gap    share of pictures that any expert gets right, minus that of the ensemble; in groups the mean over classes
        agreement     (K, K) share of pictures with the same answer
        sole_best     (K) number of classes where this expert's recall is higher than every other's; the other classes have ties
        """
        assert self.classes is not None, "table needs classes and labels"
        overall = self._of_group(0) if len(self.support_C) else None
        if overall is None:
            return dict.fromkeys(COLUMNS) | {"groups": dict.fromkeys(self.classes.groups)}
        return overall | {"groups": {name: self._of_group(g) for g, name in enumerate(self.classes.groups, 1)}}

    def best_experts(self) -> list[list[int]]:
        """For each class the experts, counted from 1, with the highest recall: several in a tie, none where none is right."""
        of_experts_CK = self.hits_CJ[:, 1:-1]
        best_CK = (of_experts_CK == of_experts_CK.amax(1, keepdim=True)) & (of_experts_CK > 0)
        return [(row.nonzero()[:, 0] + 1).tolist() for row in best_CK]

    def _pairwise(self, g: int) -> dict[str, float | None]:
        pictures = int(self.support_C[self.groups_GC[g]].sum()) if len(self.support_C) else 0
        if not pictures or not self.sums_GP3.shape[1]:
            return dict.fromkeys(PAIRWISE)
        return dict(zip(PAIRWISE, (self.sums_GP3[g].mean(0) / pictures).tolist(), strict=True))

    def _of_group(self, g: int) -> dict[str, Any] | None:
        seen_C = self.groups_GC[g] & (self.support_C > 0)
        if not seen_C.any():
            return None
        num_experts, pictures = self.hits_CJ.shape[1] - 2, int(self.support_C[seen_C].sum())
        share_KC = self.answered_GKC[g].double() / pictures
        agreement_KK, kappas = torch.eye(num_experts, dtype=torch.float64), []
        for p, (j, k) in enumerate(combinations(range(num_experts), 2)):
            observed = 1 - self.sums_GP3[g, p, 0].item() / pictures
            agreement_KK[j, k] = agreement_KK[k, j] = observed
            by_chance = (share_KC[j] * share_KC[k]).sum().item()
            kappas += [(observed - by_chance) / (1 - by_chance)] if by_chance < 1 else []
        recall_CJ = self.hits_CJ[seen_C].double() / self.support_C[seen_C, None]
        weights_C = self.support_C[seen_C].double() if g == 0 else torch.ones(len(recall_CJ), dtype=torch.float64)
        accuracy_J = (weights_C / weights_C.sum()) @ recall_CJ
        best = [experts for experts, seen in zip(self.best_experts(), seen_C.tolist(), strict=True) if seen]
        return self._pairwise(g) | {
            "kappa": sum(kappas) / len(kappas) if kappas else None,
            "recall_sd": recall_CJ[:, 1:-1].std(1, correction=0).mean().item() if num_experts > 1 else None,
            "oracle_gap": (accuracy_J[-1] - accuracy_J[0]).item(),
            "agreement": agreement_KK.tolist(),
            "sole_best": [best.count([k]) for k in range(1, num_experts + 1)] if num_experts > 1 else None,
        }


def diversity_of(predictions: Predictions, classes: Classes) -> DiversitySums:
    """One walk over stored predictions."""
    sums, labels_N = DiversitySums(classes), torch.from_numpy(predictions.labels)
    for rows, logits_NKC in predictions.chunks(classes):
        sums.update(logits_NKC.log_softmax(-1), labels_N[rows])
    return sums


def linear_cka(features_NKD: NDArray[Any]) -> list[list[float | None]]:
    """(K, K) similarity of the experts' features, from 0 to 1, by linear centred kernel alignment (arXiv:1905.00414, section 3).

        CKA(X, Y) = ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)   with columns centred, Frobenius norms

    It does not change when an expert's features are rotated or scaled. None for features that do not vary. `features` may be memory-mapped:
    two walks, in chunks; K² D² numbers are kept.
    """
    num_pictures, num_experts, num_features = features_NKD.shape
    step = max(1, CHUNK // (num_experts * num_features))
    starts = range(0, num_pictures, step)
    mean_KD = sum(np.asarray(features_NKD[s : s + step], dtype=np.float64).sum(0) for s in starts) / max(num_pictures, 1)
    products = np.zeros((num_experts, num_experts, num_features, num_features))
    for start in starts:
        centred_NKD = np.asarray(features_NKD[start : start + step], dtype=np.float64) - mean_KD
        for j in range(num_experts):
            for k in range(j, num_experts):
                products[j, k] += centred_NKD[:, j].T @ centred_NKD[:, k]
    squares_KK = (products**2).sum((-2, -1))
    squares_KK = np.triu(squares_KK) + np.triu(squares_KK, 1).T
    scale_KK = np.sqrt(np.outer(np.diag(squares_KK), np.diag(squares_KK)))
    return [
        [float(s / scale) if scale else None for s, scale in zip(*rows, strict=True)] for rows in zip(squares_KK, scale_KK, strict=True)
    ]
