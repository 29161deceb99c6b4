"""Does a confidence of 80 % mean 80 % right?"""

import torch
from torch import Tensor

NUM_BINS = 15


class CalibrationSums:
    """Expected calibration error, Σ_b n_b/N |accuracy_b − confidence_b| over 15 equal-width bins (arXiv:1706.04599, Eq. 3), in chunks."""

    def __init__(self) -> None:
        self.sums_3b = torch.zeros(3, NUM_BINS, dtype=torch.float64)  # pictures, hits, sum of confidences

    def update(self, confidence_N: Tensor, hit_N: Tensor) -> None:
        """Confidences in [0, 1] and whether each answer was right. Bins are closed above: (0, 1/15], (1/15, 2/15], ..."""
        bin_N = (confidence_N.double() * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
        self.sums_3b.index_add_(1, bin_N, torch.stack([torch.ones_like(confidence_N), hit_N.to(confidence_N), confidence_N]).double())

    def ece(self) -> float | None:
        """None without pictures."""
        pictures_b, hits_b, confidences_b = self.sums_3b
        return ((hits_b - confidences_b).abs().sum() / pictures_b.sum()).item() if pictures_b.sum() else None
