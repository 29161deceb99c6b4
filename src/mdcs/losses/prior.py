"""Cross-entropy on logits shifted by the class prior: one class for CE, balanced softmax and the skill of each MDCS expert."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mdcs.errors import UserError
from mdcs.losses.algebra import cross_entropy, empty_shift, log_counts, require_pictures, widened
from mdcs.types import Classes, Loss, Output, Views


def evenly(first: float, last: float, num_experts: int) -> list[float]:
    """K numbers, evenly spaced from `first` to `last`; their middle for K = 1."""
    if num_experts == 1:
        return [(first + last) / 2]
    return [first + (last - first) * k / (num_experts - 1) for k in range(num_experts)]


class PriorAdjusted(Loss):
    """Cross-entropy of a_k = z_k + λ_k log n for each expert k, over all views, summed (or averaged) over the experts.

        L = Σ_k 1/(V·B) Σ_{v,i} −Σ_c t_ic log softmax(a_k(x_i^v))_c

    where n are the training counts. It is minimised by z_k = log p(y|x) − λ_k log π + const, so
    λ = 0 is cross-entropy, λ = 1 balanced softmax (arXiv:2007.10740, Eq. 4) or logit adjustment (arXiv:2007.07314, Eq. 10 with τ = 1),
    and different λ_k give experts of different skills. `lambdas` is one number for all experts, or one for each.
    A class without training pictures is refused, unless `mask_empty` takes it out of the softmax.
    """

    counts_C: Tensor

    def __init__(
        self,
        classes: Classes,
        num_experts: int = 3,
        lambdas: float | Sequence[float] = 1.0,
        reduction: Literal["sum", "mean"] = "sum",
        views: Sequence[str] = ("weak",),
        mask_empty: bool = False,
    ) -> None:
        super().__init__()
        lambdas_K = [float(lambdas)] * num_experts if isinstance(lambdas, int | float) else [float(x) for x in lambdas]
        if len(lambdas_K) != num_experts:
            raise UserError(
                f"loss.lambdas={lambdas_K} has {len(lambdas_K)} values for model.num_experts={num_experts}: give one value per expert"
            )
        if not views:
            raise UserError("loss.views=[] names no view: give at least one, for example [weak]")
        require_pictures(classes, mask_empty)
        self.views = tuple(views)
        self.reduction = reduction
        # Integers and Python floats: casting the module to half precision does not round them.
        self.register_buffer("counts_C", classes.counts.clone(), persistent=False)
        self.lambdas_K = tuple(lambdas_K)
        self.mask_empty = mask_empty
        self.kept_bias_KC: Tensor | None = None

    def extra_repr(self) -> str:
        return f"λ = {', '.join(format(weight, 'g') for weight in self.lambdas_K)}"

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(K, C) λ_k log n_c. (The published code takes log(n^λ + 1e-9); the two differ by less than 1e-7 for raw counts.)

        The last one is kept: it is nine small operations, and every step wants the same. It is no buffer, which half precision would round.
        """
        bias_KC = self.kept_bias_KC
        if bias_KC is None or bias_KC.dtype != dtype or bias_KC.device != self.counts_C.device:
            with torch.inference_mode(False):  # training can use what a validation before it kept
                log_counts_C = log_counts(self.counts_C, dtype)
                bias_KC = torch.stack([weight * log_counts_C for weight in self.lambdas_K])
                self.kept_bias_KC = bias_KC = bias_KC + empty_shift(self.counts_C, dtype) if self.mask_empty else bias_KC
        return bias_KC

    def adjusted(self, logits_VBKC: Tensor) -> Tensor:
        """(V, B, K, C) a_k = z_k + λ_k log n, in at least float32."""
        logits_VBKC = widened(logits_VBKC)
        return logits_VBKC + self.bias(logits_VBKC.dtype)

    def diversity(self, log_probs_VBKC: Tensor, targets_BC: Tensor) -> Tensor:
        """() the cross-entropies of the experts, summed or averaged."""
        ce_K = cross_entropy(log_probs_VBKC, targets_BC.to(log_probs_VBKC.dtype))
        return ce_K.sum() if self.reduction == "sum" else ce_K.mean()

    def forward(self, out: Output, views: Views, epoch: float) -> dict[str, Tensor]:
        loss = self.diversity(self.adjusted(out.logits).log_softmax(-1), views.targets)
        return {"loss": loss, "diversity": loss.detach()}
