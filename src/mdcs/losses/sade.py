"""SADE: experts with the skills of a long-tailed, a uniform and an inversely long-tailed world (arXiv:2107.09249)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcs.losses.algebra import empty_shift, log_counts
from mdcs.losses.prior import PriorAdjusted
from mdcs.types import Classes


class SADE(PriorAdjusted):
    """Cross-entropy of z_k + b_k, over all views, summed over the experts.

        b_1 = 0,   b_2 = log n,   b_3 = log n − τ log ñ

    where ñ gives the most frequent class the count of the rarest and so on (equal counts in the order of the classes), τ = `tau`:
    2 as published for CIFAR and ImageNet-LT (the published code adds 1e-9 within the logarithms of the frequencies).
    K other than 3 (ours): the skill s goes evenly from −1 to 1, b(s) = (1 + min(s, 0))·log n − max(s, 0)·τ·log ñ, so that K = 3
    is the published triple, K = 2 its two extremes and K = 1 balanced softmax.
    Test-time aggregation, the second half of the paper, needs no training and is none of this loss's.
    """

    reversed_C: Tensor

    def __init__(
        self,
        classes: Classes,
        num_experts: int = 3,
        tau: float = 2.0,
        views: Sequence[str] = ("weak",),
        mask_empty: bool = False,
    ) -> None:
        super().__init__(classes, num_experts, 1.0, views=views, mask_empty=mask_empty)
        self.tau = tau
        self.skills_K = (0.0,) if num_experts == 1 else tuple(2 * k / (num_experts - 1) - 1 for k in range(num_experts))
        # Classes without pictures keep 0 and take no part in the ranking.
        ranked = classes.counts.argsort(stable=True)
        ranked = ranked[classes.counts[ranked] > 0]
        reversed_C = torch.zeros_like(classes.counts)
        reversed_C[ranked] = classes.counts[ranked].flip(0)
        self.register_buffer("reversed_C", reversed_C, persistent=False)

    def extra_repr(self) -> str:
        return f"skills {', '.join(format(skill, 'g') for skill in self.skills_K)}, τ = {self.tau:g}"

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(K, C) b_k."""
        log_n_C, log_reversed_C = log_counts(self.counts_C, dtype), log_counts(self.reversed_C, dtype)
        rows = [(1 + min(skill, 0.0)) * log_n_C - max(skill, 0.0) * self.tau * log_reversed_C for skill in self.skills_K]
        return torch.stack(rows) + empty_shift(self.counts_C, dtype)
