"""Cross-entropy of two views, and divergence of the second from the first, with their gradient in closed form: the inside of MDCS.

Left to automatic differentiation, some ten tensors as large as the logits would be written to memory and read again, and several would wait
for the backward pass. Here one does, and a CPU goes through the pictures a few at a time, so that what is in between stays in its cache.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# How many logits a CPU takes at a time: in float32 as much as a core's second cache of 1 MiB holds. Half or twice as many is about as fast.
CACHED = 2**18


def portions(size: int, logits_VBKC: Tensor, *others: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The logits, and others whose first axis is B, `size` pictures at a time."""
    if size >= logits_VBKC.shape[1]:
        return [(logits_VBKC, *others)]
    return zip(logits_VBKC.split(size, 1), *(other.split(size) for other in others), strict=True)


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
        sought_B11 = targets_B1C if labels_B is None else labels_B[:, None, None]  # without labels nothing is sought
        fits, masks, divergences, probs = [], [], [], []
        for part_VBKC, part_B1C, part_B11 in portions(size, logits_VBKC, targets_B1C, sought_B11):
            below_VBKC = part_VBKC + bias_KC
            below_VBKC -= below_VBKC.amax(-1, keepdim=True)
            probs_VBKC = below_VBKC.exp()
            total_VBK1 = probs_VBKC.sum(-1, keepdim=True)
            probs_VBKC /= total_VBK1
            log_total_VBK1 = total_VBK1.log_()
            (weak_BKC, strong_BKC), (log_weak_BK1, log_strong_BK1) = below_VBKC.unbind(), log_total_VBK1.unbind()
            if labels_B is None:
                masks.append(torch.ones_like(log_weak_BK1, dtype=torch.bool))
            else:
                masks.append(weak_BKC.gather(-1, part_B11.expand(-1, num_experts, -1)) == 0)  # 0 is the greatest
            apart_BK1 = (weak_BKC - strong_BKC).mul_(probs_VBKC[0]).sum(-1, keepdim=True)
            divergences.append(apart_BK1.add_(log_strong_BK1).sub_(log_weak_BK1))
            fits.append(below_VBKC.mul_(part_B1C).sum() - log_total_VBK1.sum())
            probs.append(probs_VBKC)
        mask_BK1 = joined(masks)
        chosen_BK1 = mask_BK1.to(logits_VBKC.dtype)
        number_K1 = chosen_BK1.sum(0)
        share_BK1 = chosen_BK1 / number_K1.clamp(min=1)
        ce = functools.reduce(torch.add, fits) / (-num_views * rows)
        kl = joined(divergences).flatten().dot(share_BK1.flatten())
        ctx.size, ctx.weight = size, weight
        ctx.save_for_backward(targets_B1C, share_BK1, *probs)
        ctx.mark_non_differentiable(ce, kl, mask_BK1, number_K1)
        ctx.set_materialize_grads(False)
        return torch.add(ce, kl, alpha=weight), ce, kl, mask_BK1, number_K1

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, None, None, None, None]:
        # once_differentiable would let create_graph=True pass here, and leave the second derivative out without a word.
        if torch.is_grad_enabled():
            raise RuntimeError("the MDCS loss in closed form has no second derivative: set closed_form = False on it")
        targets_B1C, share_BK1, *probs = ctx.saved_tensors
        num_views, _, num_experts, num_classes = probs[0].shape
        rows = len(share_BK1)
        grad_VBKC = probs[0].new_empty((num_views, rows, num_experts, num_classes))
        ce = grad / (num_views * rows)
        kl_BK1 = share_BK1 * (grad * ctx.weight)
        shares = portions(ctx.size, grad_VBKC, targets_B1C, kl_BK1)
        for probs_VBKC, (part_VBKC, part_B1C, pull_BK1) in zip(probs, shares, strict=True):
            weak_BKC, strong_BKC = probs_VBKC.unbind()
            torch.sub(probs_VBKC, part_B1C, out=part_VBKC).mul_(ce)
            part_VBKC[1].add_((strong_BKC - weak_BKC).mul_(pull_BK1))
        return grad_VBKC, None, None, None, None
