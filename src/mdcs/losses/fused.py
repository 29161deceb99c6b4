"""Cross-entropy of two views, and divergence of the second from the first, with their gradient in closed form: the inside of MDCS.

Left to automatic differentiation, some ten tensors as large as the logits would be written to memory and read again, and several would wait
for the backward pass. Here one does: the gradient, which is made with the loss. A CPU goes through the pictures a few at a time, so that
what is in between stays in its cache.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# How many logits a CPU takes at a time: in float32 as much as a core's second cache of 1 MiB holds. Half or twice as many is about as fast.
CACHED = 2**18
BITS = 1 / math.log(2)  # in a nat; a CPU takes powers of two much faster than exponentials


def portions(size: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Tensors (V, B, ., .) and (B, ., .), `size` pictures at a time."""
    if size >= tensors[0].shape[1]:
        return [tensors]
    return zip(*(tensor.split(size, tensor.ndim - 3) for tensor in tensors), strict=True)


def joined(parts: list[Tensor]) -> Tensor:
    """What was found for each portion, for all pictures."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Distilled(torch.autograd.Function):
    """Cross-entropy of both views, plus `weight` times the divergence of the second from the first where the first is right.

        L      = CE + weight · KL,   a = logits + bias,   p = softmax(a)
        CE     = Σ_k 1/(2B) Σ_{v,i} −Σ_c t_ic log p_vik,c
        KL     = Σ_k Σ_i s_ik Σ_c p_1ik,c (log p_1ik,c − log p_2ik,c),   s_ik = 1/|S_k| for i in S_k, else 0
        S_k    = { i : a_1ik,c is greatest for c = labels_i }; all pictures if there are no labels
        dL/da_1 = (p_1 − t)/(2B)
        dL/da_2 = (p_2 − t)/(2B) + weight · s (p_2 − p_1)

    as the first view's part in KL has no gradient. `logits` (2, B, K, C), `bias` (K, C) and `targets` (B, C), whose rows sum to 1, are of
    one floating type; `labels` (B,) or none. Returns L, CE, KL (), the mask S_k (B, K, 1) and |S_k| (K, 1); only L has a gradient, with
    respect to the logits, and only a first one.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_VBKC: Tensor, bias_KC: Tensor, targets_BC: Tensor, labels_B: Tensor | None, weight: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        num_views, rows, num_experts, num_classes = logits_VBKC.shape
        # A GPU takes all at a time: there, each operation has a price of its own.
        size = max(1, CACHED // (num_views * num_experts * num_classes)) if logits_VBKC.device.type == "cpu" else rows
        targets_B1C = targets_BC[:, None]
        # without labels nothing is sought
        sought_BK1 = targets_B1C if labels_B is None else labels_B[:, None, None].expand(-1, num_experts, -1)
        grad_VBKC = torch.empty_like(logits_VBKC)  # the probabilities, at first
        fits, masks, divergences = [], [], []
        for part_VBKC, probs_VBKC, part_B1C, part_BK1 in portions(size, logits_VBKC, grad_VBKC, targets_B1C, sought_BK1):
            adjusted_VBKC = part_VBKC + bias_KC
            log_probs_VBKC = adjusted_VBKC.log_softmax(-1)
            torch.exp2(log_probs_VBKC * BITS, out=probs_VBKC)
            if labels_B is None:
                masks.append(torch.ones_like(probs_VBKC[0, ..., :1], dtype=torch.bool))
            else:
                masks.append(adjusted_VBKC[0].gather(-1, part_BK1) == adjusted_VBKC[0].amax(-1, keepdim=True))
            weak_BKC, strong_BKC = log_probs_VBKC.unbind()
            divergences.append((weak_BKC - strong_BKC).mul_(probs_VBKC[0]).sum(-1, keepdim=True))
            fits.append(log_probs_VBKC.mul_(part_B1C).sum())
        mask_BK1 = joined(masks)
        chosen_BK1 = mask_BK1.to(logits_VBKC.dtype)
        number_K1 = chosen_BK1.sum(0)
        share_BK1 = chosen_BK1 / number_K1.clamp(min=1)
        ce = functools.reduce(torch.add, fits) / (-num_views * rows)
        kl = joined(divergences).flatten().dot(share_BK1.flatten())
        for part_VBKC, part_B1C, part_BK1 in portions(size, grad_VBKC, targets_B1C, share_BK1):
            pull_BKC = part_VBKC[1] - part_VBKC[0]
            part_VBKC.sub_(part_B1C).div_(num_views * rows)
            part_VBKC[1].addcmul_(pull_BKC, part_BK1, value=weight)
        ctx.save_for_backward(grad_VBKC)
        ctx.mark_non_differentiable(ce, kl, mask_BK1, number_K1)
        ctx.set_materialize_grads(False)
        return torch.add(ce, kl, alpha=weight), ce, kl, mask_BK1, number_K1

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, None, None, None, None]:
        # once_differentiable would let create_graph=True pass here, and leave the second derivative out without a word.
        if torch.is_grad_enabled():
            raise RuntimeError("the MDCS loss in closed form has no second derivative: set closed_form = False on it")
        return ctx.saved_tensors[0] * grad, None, None, None, None
