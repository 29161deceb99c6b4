"""LDAM: a margin for each class, wider for rare ones, and class weights in the last epochs (DRW)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcs.errors import UserError
from mdcs.losses.algebra import class_balanced_weights, cross_entropy, empty_shift, require_pictures, widened
from mdcs.types import Classes, Loss, Output, Views


class LDAM(Loss):
    """Label-distribution-aware margin loss (arXiv:1906.07413, Eq. 13), summed over the experts.

        L   = Σ_k mean_vi −Σ_c t_ic log softmax(z_k(x_i^v) − s·m⊙t_i)_c,      m_c = M · n_c^(−1/4) / max_c n_c^(−1/4)

    M = `max_margin`. The margin lives on the cosine, and the heads' logits are s times it: `scale` is that of the cosine heads, 30. With
    `model.head=linear` the logits are no cosines and a margin of s·M = 15 is far too wide; choose a smaller `scale` there.
    For a mixed or smoothed target each class has its margin times its share (ours; the paper has single labels only).

    In epochs after `reweight_epoch` the mean is weighted by class-balanced weights with `beta` (deferred re-weighting, Algorithm 1;
    null = never), within each micro-batch and rank. A class without training pictures is refused, unless `mask_empty` takes it out of
    the softmax. Part: margin, the loss itself.
    """

    counts_C: Tensor

    def __init__(
        self,
        classes: Classes,
        num_experts: int = 3,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_epoch: int | None = None,
        beta: float = 0.9999,
        views: Sequence[str] = ("weak",),
        mask_empty: bool = False,
    ) -> None:
        super().__init__()
        if max_margin < 0 or scale <= 0 or not 0 <= beta < 1 or (reweight_epoch or 0) < 0:
            raise UserError(
                f"loss.max_margin={max_margin} and loss.reweight_epoch={reweight_epoch} must be >= 0, loss.scale={scale} > 0, "
                f"loss.beta={beta} in [0, 1)"
            )
        if not views:
            raise UserError("loss.views=[] names no view: give at least one, for example [weak]")
        require_pictures(classes, mask_empty)
        self.views = tuple(views)
        self.max_margin = max_margin
        self.scale = scale
        self.reweight_epoch = reweight_epoch
        self.beta = beta
        self.register_buffer("counts_C", classes.counts.clone(), persistent=False)

    def extra_repr(self) -> str:
        deferred = "" if self.reweight_epoch is None else f", re-weighted after epoch {self.reweight_epoch}"
        return f"margins to {self.max_margin:g}{deferred}"

    def reweights(self, epoch: float) -> bool:
        """Whether the second stage has begun."""
        return self.reweight_epoch is not None and epoch > self.reweight_epoch

    def margins(self, dtype: torch.dtype) -> Tensor:
        """(C,) m_c, at most `max_margin`, which the rarest class has; 0 for a class without pictures."""
        root_C = self.counts_C.to(dtype).clamp(min=1) ** -0.25 * (self.counts_C > 0)
        return self.max_margin * root_C / root_C.max()

    def margin_loss(self, logits_VBKC: Tensor, targets_BC: Tensor, epoch: float) -> Tensor:
        """() L, of logits without the classes that have no pictures."""
        dtype = logits_VBKC.dtype
        narrowed_VBKC = logits_VBKC - (self.scale * self.margins(dtype) * targets_BC)[:, None]
        weights_C = class_balanced_weights(self.counts_C, self.beta, dtype) if self.reweights(epoch) else None
        return cross_entropy(narrowed_VBKC.log_softmax(-1), targets_BC, weights_C).sum()

    def forward(self, out: Output, views: Views, epoch: float) -> dict[str, Tensor]:
        logits_VBKC = widened(out.logits)
        logits_VBKC = logits_VBKC + empty_shift(self.counts_C, logits_VBKC.dtype)
        loss = self.margin_loss(logits_VBKC, views.targets.to(logits_VBKC.dtype), epoch)
        return {"loss": loss, "margin": loss.detach()}
