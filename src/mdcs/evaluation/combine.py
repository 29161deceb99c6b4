"""Several experts, one answer."""

from torch import Tensor


def combine(logits_BKC: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """(B, C) mean of the experts' raw logits, or Σ_k w_k z_k / Σ_k w_k.

    Published MDCS predicts with the plain mean, without a softmax before it.
    """
    if weights_K is None:
        return logits_BKC.mean(-2)
    return (logits_BKC * (weights_K / weights_K.sum())[:, None]).sum(-2)
