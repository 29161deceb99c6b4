"""How different the experts are, from their logits."""

from itertools import combinations

import torch
from torch import Tensor


class DiversitySums:
    """Means over pictures and pairs of experts, in chunks: how often the two disagree, and KL(p_j ‖ p_k) over both orders of the pair."""

    def __init__(self) -> None:
        self.disagreement = 0.0
        self.kl = 0.0
        self.pairs = 0

    def update(self, log_probs_NKC: Tensor) -> None:
        answers_NK = log_probs_NKC.argmax(-1)
        for j, k in combinations(range(log_probs_NKC.shape[1]), 2):
            log_p, log_q = log_probs_NKC[:, j], log_probs_NKC[:, k]
            self.disagreement += (answers_NK[:, j] != answers_NK[:, k]).sum().item()
            # KL(p‖q) + KL(q‖p) = Σ (p − q)(log p − log q); half of it is the mean over the two orders.
            self.kl += 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dtype=torch.float64).item()
            self.pairs += len(log_probs_NKC)

    def means(self) -> dict[str, float | None]:
        """`disagreement` as a fraction, `kl` in nats; None for a single expert."""
        if not self.pairs:
            return {"disagreement": None, "kl": None}
        return {"disagreement": self.disagreement / self.pairs, "kl": self.kl / self.pairs}
