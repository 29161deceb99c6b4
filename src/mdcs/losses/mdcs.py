"""MDCS: More Diverse experts with Consistency Self-distillation (arXiv:2308.09922)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mdcs.errors import UserError
from mdcs.losses.algebra import empty_shift, masked_kl, widened
from mdcs.losses.fused import Distilled
from mdcs.losses.prior import PriorAdjusted, evenly
from mdcs.types import Classes, Output, Views


class MDCS(PriorAdjusted):
    """Diversity loss, plus self-distillation of each expert from its weak to its strong view, on pictures it is already right about.

        L    = Σ_k CE_k + α · min(e/W, 1) · Σ_k KL_k
        KL_k = T²/|S_k| Σ_{i∈S_k} KL( p_k(x_i^w) ‖ p_k(x_i^s) ),   p_k = softmax(a_k/T),  p_k(x^w) without gradient, 0 if S_k is empty
        S_k  = { i : argmax a_k(x_i^w) = y_i }     ("confident instances"; all pictures if not `confident_only`)

    with a_k = z_k + λ_k log n as in `PriorAdjusted`, CE_k over both views, α = `alpha`, W = `warmup_epochs`, e the epoch from 1,
    T = `temperature` (published: 1; the factor T² keeps the gradient's size). The adjusted logits are used in all three places, as in
    the published code; so S_k is strict on rare classes for an expert with a large λ_k, and lenient for one with a small λ_k.
    A label that ties with other classes counts as right, where the published code leaves it to the order of the classes.

    `lambdas` = null spaces them evenly from −0.5 to 2.5 (the published −0.5, 1, 2.5 for K = 3; 1 for K = 1), so that their mean is 1
    and the mean of the raw logits is the balanced classifier. The first of `views` teaches the second.

    Ablations, whose published settings are the defaults: `mask_on` = raw takes S_k from z_k; `direction` of the divergence: forward as
    above, reverse = KL(strong ‖ weak), symmetric = the mean of both; `teacher` = self (the expert), ensemble (the mean of the experts)
    or ema (the expert of the averaged weights, which `optim.ema_decay` keeps), each with the λ_k of the expert that learns, and S_k
    are then the pictures that this teacher is right about. The teacher never receives a gradient.

    The published code, the source of the constants, sums over experts: the shared stages see a gradient that grows with K.
    |S_k| is counted per micro-batch and per rank: under gradient accumulation or DDP the mean over confident pictures is taken within each.
    Parts: diversity, consistency (both summed over experts, before α and the ramp), distill_weight, confident (K,) = |S_k|/B,
    confident_KB (the sets themselves).
    """

    def __init__(
        self,
        classes: Classes,
        num_experts: int = 3,
        lambdas: Sequence[float] | None = None,
        alpha: float = 0.6,
        warmup_epochs: int = 20,
        temperature: float = 1.0,
        confident_only: bool = True,
        mask_on: Literal["adjusted", "raw"] = "adjusted",
        direction: Literal["forward", "reverse", "symmetric"] = "forward",
        teacher: Literal["self", "ensemble", "ema"] = "self",
        views: Sequence[str] = ("weak", "strong"),
        mask_empty: bool = False,
    ) -> None:
        super().__init__(classes, num_experts, evenly(-0.5, 2.5, num_experts) if lambdas is None else lambdas, "sum", views, mask_empty)
        if len(self.views) != 2:
            raise UserError(f"loss.views={list(self.views)} has {len(self.views)} entries: MDCS distils one view into another, give two")
        if alpha < 0 or warmup_epochs < 0 or temperature <= 0:
            raise UserError(
                f"loss.alpha={alpha} and loss.warmup_epochs={warmup_epochs} must be >= 0, loss.temperature={temperature} must be > 0"
            )
        self.alpha = alpha
        self.warmup_epochs = warmup_epochs
        self.temperature = temperature
        self.confident_only = confident_only
        self.mask_on = mask_on
        self.direction = direction
        self.teacher = teacher
        # Whether `losses/fused.py` computes it. A class derived from this one that changes a part of `forward` sets it to False.
        self.closed_form = temperature == 1 and mask_on == "adjusted" and direction == "forward" and teacher == "self"

    @property
    def ema_teacher(self) -> bool:
        """Whether `forward` wants the logits of the averaged weights; the training step asks."""
        return self.teacher == "ema"

    def distill_weight(self, epoch: float) -> float:
        """α · min(e/W, 1)."""
        return self.alpha * min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else self.alpha

    def softened(self, adjusted: Tensor) -> Tensor:
        """log softmax(a/T) over the last axis."""
        return (adjusted / self.temperature).log_softmax(-1)

    def taught(self, logits_BKC: Tensor, ema_logits_BKC: Tensor | None) -> Tensor:
        """(B, K, C) the teacher's raw logits of the first view, without gradient, from those of the experts."""
        if self.teacher == "self":
            return widened(logits_BKC.detach())
        if self.teacher == "ensemble":
            return widened(logits_BKC.detach()).mean(1, keepdim=True).expand_as(logits_BKC)
        assert ema_logits_BKC is not None, "the training step gives them where ema_teacher is true"
        return widened(ema_logits_BKC.detach())

    def confident(self, logits_BKC: Tensor, adjusted_BKC: Tensor, targets_BC: Tensor) -> Tensor:
        """(B, K) bool, S_k from the teacher's raw and adjusted logits."""
        if not self.confident_only:
            return torch.ones(logits_BKC.shape[:2], dtype=torch.bool, device=logits_BKC.device)
        seen_BKC = adjusted_BKC if self.mask_on == "adjusted" else logits_BKC + empty_shift(self.counts_C, logits_BKC.dtype)
        labels_BK1 = targets_BC.argmax(-1)[:, None, None].expand(-1, seen_BKC.shape[1], -1)
        return seen_BKC.gather(-1, labels_BK1).squeeze(-1) == seen_BKC.amax(-1)

    def divergence(self, log_teacher_BKC: Tensor, log_student_BKC: Tensor, mask_BK: Tensor) -> Tensor:
        """(K,) the divergence in its direction, mean over the pictures that the mask keeps."""
        if self.direction == "forward":
            return masked_kl(log_teacher_BKC, log_student_BKC, mask_BK)
        reverse_K = masked_kl(log_student_BKC, log_teacher_BKC, mask_BK)
        return reverse_K if self.direction == "reverse" else (reverse_K + masked_kl(log_teacher_BKC, log_student_BKC, mask_BK)) / 2

    def forward(self, out: Output, views: Views, epoch: float, ema_logits: Tensor | None = None) -> dict[str, Tensor]:
        """`ema_logits` (B, K, C): what the averaged weights say about the first view, for `teacher` = ema."""
        if self.closed_form:
            return self.fused(out.logits, views.targets, epoch)
        adjusted_VBKC = self.adjusted(out.logits)
        log_probs_VBKC = adjusted_VBKC.log_softmax(-1)
        diversity = self.diversity(log_probs_VBKC, views.targets)

        soft_VBKC = log_probs_VBKC if self.temperature == 1 else self.softened(adjusted_VBKC)
        teacher_BKC = self.taught(out.logits[0], ema_logits)
        own = self.teacher == "self"
        adjusted_BKC = adjusted_VBKC[0].detach() if own else self.adjusted(teacher_BKC)
        confident_BK = self.confident(teacher_BKC, adjusted_BKC, views.targets)
        log_teacher_BKC = soft_VBKC[0].detach() if own else self.softened(adjusted_BKC)
        consistency = self.temperature**2 * self.divergence(log_teacher_BKC, soft_VBKC[1], confident_BK).sum()

        loss = diversity + self.distill_weight(epoch) * consistency
        return self.parts(loss, diversity.detach(), consistency.detach(), confident_BK, confident_BK.sum(0), epoch)

    def fused(self, logits_VBKC: Tensor, targets_BC: Tensor, epoch: float) -> dict[str, Tensor]:
        """What `forward` returns, at about half its price, where `closed_form` holds."""
        logits_VBKC = widened(logits_VBKC)
        labels_B = targets_BC.argmax(-1) if self.confident_only else None
        bias_KC, targets_BC = self.bias(logits_VBKC.dtype), targets_BC.to(logits_VBKC.dtype)
        loss, diversity, consistency, confident_BK1, number_K1 = Distilled.apply(
            logits_VBKC, bias_KC, targets_BC, labels_B, self.distill_weight(epoch)
        )
        return self.parts(loss, diversity, consistency, confident_BK1[..., 0], number_K1[:, 0], epoch)

    def parts(
        self, loss: Tensor, diversity: Tensor, consistency: Tensor, confident_BK: Tensor, number_K: Tensor, epoch: float
    ) -> dict[str, Tensor]:
        """The loss, and what is logged of it; `number_K` = |S_k|."""
        return {
            "loss": loss,
            "diversity": diversity,
            "consistency": consistency,
            "distill_weight": diversity.new_full((), self.distill_weight(epoch)),
            "confident": number_K.to(diversity.dtype) / len(confident_BK),
            "confident_KB": confident_BK.T,
        }
