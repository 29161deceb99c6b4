"""Cross-entropy in which classes, or pictures that are still wrong, weigh more: class-balanced and focal loss, alone or together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcs.errors import UserError
from mdcs.losses.algebra import class_balanced_weights, cross_entropy, empty_shift, require_pictures, widened
from mdcs.types import Classes, Loss, Output, Views


class Reweighted(Loss):
    """Cross-entropy with weights by class and by difficulty, summed over the experts.

        L = Σ_k  Σ_vi Σ_c w_c t_ic (1 − p_ic)^γ (−log p_ic)  /  Σ_vi Σ_c w_c t_ic,      p = softmax(z_k)

    γ = `gamma`: 0 is cross-entropy; focal loss (arXiv:1708.02002, Eq. 4) has 2 there. For a target distribution t it is the mean of the
    losses of its classes, as in cross-entropy.
    w: `class_balanced_weights` with β = `beta` (arXiv:1901.05555); 0 weighs all classes alike. They hold in epochs after `reweight_epoch`,
    before that w = 1 (deferred re-weighting, arXiv:1906.07413, Algorithm 1).

    The denominator is that of each micro-batch and rank: under gradient accumulation or DDP the weighted mean is taken within each.
    A class without training pictures is refused, unless `mask_empty` takes it out of the softmax. Part: reweighted, the loss itself.
    """

    counts_C: Tensor

    def __init__(
        self,
        classes: Classes,
        num_experts: int = 3,
        gamma: float = 0.0,
        beta: float = 0.0,
        reweight_epoch: int = 0,
        views: Sequence[str] = ("weak",),
        mask_empty: bool = False,
    ) -> None:
        super().__init__()
        if gamma < 0 or not 0 <= beta < 1 or reweight_epoch < 0:
            raise UserError(f"loss.gamma={gamma} and loss.reweight_epoch={reweight_epoch} must be >= 0, loss.beta={beta} in [0, 1)")
        if not views:
            raise UserError("loss.views=[] names no view: give at least one, for example [weak]")
        require_pictures(classes, mask_empty)
        self.views = tuple(views)
        self.gamma = gamma
        self.beta = beta
        self.reweight_epoch = reweight_epoch
        self.register_buffer("counts_C", classes.counts.clone(), persistent=False)

    def extra_repr(self) -> str:
        return f"γ = {self.gamma:g}, β = {self.beta:g}"

    def forward(self, out: Output, views: Views, epoch: float) -> dict[str, Tensor]:
        logits_VBKC = widened(out.logits)
        dtype = logits_VBKC.dtype
        log_probs_VBKC = (logits_VBKC + empty_shift(self.counts_C, dtype)).log_softmax(-1)
        if self.gamma:
            # Not below the smallest number: the slope of x^γ at 0 is infinite for γ < 1.
            wrong_VBKC = (-torch.expm1(log_probs_VBKC)).clamp(min=torch.finfo(dtype).tiny)
            log_probs_VBKC = wrong_VBKC**self.gamma * log_probs_VBKC
        weights_C = class_balanced_weights(self.counts_C, self.beta, dtype) if self.beta and epoch > self.reweight_epoch else None
        loss = cross_entropy(log_probs_VBKC, views.targets.to(dtype), weights_C).sum()
        return {"loss": loss, "reweighted": loss.detach()}
