"""The arithmetic that losses share. Nothing here synchronises with the device or uses a matrix product, so autocast cannot lower it."""

import torch
from torch import Tensor

# What a masked class's logits are shifted by: its probability is exactly 0, and 0 · (log p − log q) stays 0 where −∞ would give NaN.
MASKED = -1e4


def widened(logits: Tensor) -> Tensor:
    """`logits` in at least float32: half precision rounds logits near 30 in steps of 0.125."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def log_counts(counts_C: Tensor, dtype: torch.dtype) -> Tensor:
    """(C,) log n_c, 0 for a class without pictures (such classes are masked or refused by the losses)."""
    return counts_C.to(dtype).clamp(min=1).log()


def cross_entropy(log_probs_VBKC: Tensor, targets_BC: Tensor) -> Tensor:
    """(K,) cross-entropy −Σ_c t_c log p_c of each expert, mean over the V·B rows."""
    rows_VBK = -(targets_BC[:, None, :] * log_probs_VBKC).sum(-1)
    return rows_VBK.mean((0, 1))


def masked_kl(log_p_BKC: Tensor, log_q_BKC: Tensor, mask_BK: Tensor) -> Tensor:
    """(K,) KL(p ‖ q) = Σ_c p_c (log p_c − log q_c), mean over the rows that the mask keeps; 0 where it keeps none."""
    rows_BK = (log_p_BKC.exp() * (log_p_BKC - log_q_BKC)).sum(-1)
    return (rows_BK * mask_BK).sum(0) / mask_BK.sum(0).clamp(min=1)
