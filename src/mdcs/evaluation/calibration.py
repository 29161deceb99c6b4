"""Does a confidence of 80 % mean 80 % right?"""

import numpy as np
import torch
from torch import Tensor

from mdcs.evaluation.combine import combine
from mdcs.evaluation.predictions import Predictions
from mdcs.types import Classes

NUM_BINS = 15
TEMPERATURES = (0.05, 20.0)  # where the best one is looked for


class CalibrationSums:
    """Reliability over 15 equal-width bins of confidence, in chunks: the table, and the errors that follow from it."""

    def __init__(self) -> None:
        self.sums_3b = torch.zeros(3, NUM_BINS, dtype=torch.float64)  # pictures, hits, sum of confidences

    def update(self, confidence_N: Tensor, hit_N: Tensor) -> None:
        """Confidences in [0, 1] and whether each answer was right."""
        stacked_3N = torch.stack([torch.ones_like(confidence_N), hit_N.to(confidence_N), confidence_N]).double()
        self.sums_3b.index_add_(1, bin_of(confidence_N), stacked_3N)

    def gaps(self) -> Tensor:
        """(b) |accuracy − confidence| of the bins, 0 for an empty one."""
        pictures_b, hits_b, confidences_b = self.sums_3b
        return (hits_b - confidences_b).abs() / pictures_b.clamp(min=1)

    def ece(self) -> float | None:
        """Expected calibration error, Σ_b n_b/N |accuracy_b − confidence_b| (arXiv:1706.04599, Eq. 3); None without pictures."""
        pictures_b, hits_b, confidences_b = self.sums_3b
        return ((hits_b - confidences_b).abs().sum() / pictures_b.sum()).item() if pictures_b.sum() else None

    def mce(self) -> float | None:
        """Maximum calibration error, the largest gap of a bin that has pictures (arXiv:1706.04599, section 2); None without pictures."""
        return self.gaps().max().item() if self.sums_3b[0].sum() else None

    def reliability(self) -> list[dict[str, float | None]]:
        """One row a bin, from (0, 1/15] to (14/15, 1]: `count`, and the mean `confidence` and `accuracy`, None in an empty bin."""
        rows = []
        for pictures, hits, confidences in self.sums_3b.T.tolist():
            confidence, accuracy = (confidences / pictures, hits / pictures) if pictures else (None, None)
            rows.append({"count": int(pictures), "confidence": confidence, "accuracy": accuracy})
        return rows


def bin_of(confidence_N: Tensor) -> Tensor:
    """(N,) int64, the bin of each confidence. Bins are closed above: (0, 1/15], (1/15, 2/15], ..."""
    return (confidence_N.double() * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1


def adaptive_ece(confidence_N: Tensor, hit_N: Tensor) -> float | None:
    """Σ_b n_b/N |accuracy_b − confidence_b| over 15 bins of equally many pictures, in the order of confidence (as in arXiv:1904.01685).

    Where 15 does not divide N, the first bins hold one picture more. Equal confidences keep the order of the pictures.
    """
    if not len(confidence_N):
        return None
    order = confidence_N.argsort(stable=True)
    gap_N = (hit_N[order].double() - confidence_N[order].double()).numpy()
    return sum(abs(float(part.sum())) for part in np.array_split(gap_N, NUM_BINS)) / len(gap_N)


def fit_temperature(validation: Predictions, classes: Classes, offset_C: Tensor | None = None) -> float:
    """The T that minimises the mean of −log softmax(z̄/T)_y over labelled pictures, z̄ = mean_k z_k (arXiv:1706.04599, section 4.2).

    The mean is convex in β = 1/T. Newton's steps on β, with derivative E_p[z] − z_y and curvature Var_p[z], are kept between the bounds
    that the sign of the derivative has shown. A classifier that is always right has no finite β: T ends at 0.05 (and at 20 if it is no
    better than chance). Labels must be of pictures that neither trained nor test the network.
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    beta = 1.0
    for _ in range(50):
        slope = curvature = 0.0
        for rows, logits_NKC in validation.chunks(classes, offset_C):
            logits_NC = combine(logits_NKC)
            probs_NC = (beta * logits_NC).softmax(-1)
            mean_N = (probs_NC * logits_NC).sum(-1)
            of_label_N = logits_NC.gather(1, torch.from_numpy(validation.labels[rows])[:, None])[:, 0]
            slope += (mean_N - of_label_N).sum(dtype=torch.float64).item()
            curvature += (probs_NC * (logits_NC - mean_N[:, None]) ** 2).sum(dtype=torch.float64).item()
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / curvature if curvature > 0 else low
        step = newton if low < newton < high else (low + high) / 2
        if abs(step - beta) < 1e-5 * beta:
            break
        beta = step
    return 1 / beta
