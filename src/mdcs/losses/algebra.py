"""The arithmetic that losses share. Nothing here synchronises with the device or uses a matrix product, so autocast cannot lower it."""

import math

import torch
from torch import Tensor

from mdcs.errors import UserError
from mdcs.types import Classes

# What a masked class's logits are shifted by: its probability is exactly 0, and 0 · (log p − log q) stays 0 where −∞ would give NaN.
MASKED = -1e4


def widened(logits: Tensor) -> Tensor:
    """`logits` in at least float32: half precision rounds logits near 30 in steps of 0.125."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def log_counts(counts_C: Tensor, dtype: torch.dtype) -> Tensor:
    """(C,) log n_c, 0 for a class without pictures (such classes are masked or refused by the losses)."""
    return counts_C.to(dtype).clamp(min=1).log()


def empty_shift(counts_C: Tensor, dtype: torch.dtype) -> Tensor:
    """(C,) what takes the classes without pictures out of a softmax when it is added to the logits: `MASKED` there, 0 elsewhere."""
    return (counts_C == 0).to(dtype) * MASKED


def require_pictures(classes: Classes, mask_empty: bool) -> None:
    """Refuse a class without training pictures, unless `mask_empty` takes it out of the softmax."""
    empty = [name for name, count in zip(classes.names, classes.counts.tolist(), strict=True) if count == 0]
    if empty and not mask_empty:
        raise UserError(
            f"class {empty[0]!r} has no training picture ({len(empty)} such classes): add some, lower data.imbalance_factor, "
            "or set loss.mask_empty=true"
        )


def class_balanced_weights(counts_C: Tensor, beta: float, dtype: torch.dtype) -> Tensor:
    """(C,) w_c ∝ (1 − β) / (1 − β^n_c), the inverse of the effective number of pictures (arXiv:1901.05555, Eq. 4); 0 for an empty class.

    They sum to the number of classes with pictures. β = 0 weighs all alike, β -> 1 by 1/n_c.
    """
    log_beta = math.log(beta) if beta > 0 else -math.inf
    inverse_C = -1 / torch.expm1(log_beta * counts_C.to(dtype).clamp(min=1))  # 1 − β^n itself loses four digits in float32
    present_C = counts_C > 0
    inverse_C = inverse_C * present_C
    return inverse_C * (present_C.sum() / inverse_C.sum())


def cross_entropy(log_probs_VBKC: Tensor, targets_BC: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """(K,) cross-entropy −Σ_c t_c log p_c of each expert, mean over the V·B rows.

    With class weights the weighted mean, Σ_i Σ_c w_c t_ic (−log p_ic) / Σ_i Σ_c w_c t_ic, which does not change with the scale of w.
    """
    if weights_C is None:
        rows_VBK = -(targets_BC[:, None, :] * log_probs_VBKC).sum(-1)
        return rows_VBK.mean((0, 1))
    weighted_BC = targets_BC * weights_C
    rows_VBK = -(weighted_BC[:, None, :] * log_probs_VBKC).sum(-1)
    return rows_VBK.mean(0).sum(0) / weighted_BC.sum()


def masked_kl(log_p_BKC: Tensor, log_q_BKC: Tensor, mask_BK: Tensor) -> Tensor:
    """(K,) KL(p ‖ q) = Σ_c p_c (log p_c − log q_c), mean over the rows that the mask keeps; 0 where it keeps none."""
    rows_BK = (log_p_BKC.exp() * (log_p_BKC - log_q_BKC)).sum(-1)
    return (rows_BK * mask_BK).sum(0) / mask_BK.sum(0).clamp(min=1)
