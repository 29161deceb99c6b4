"""MDCS: More Diverse experts with Consistency Self-distillation (arXiv:2308.09922)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcs.errors import UserError
from mdcs.losses.algebra import masked_kl
from mdcs.losses.prior import PriorAdjusted
from mdcs.types import Classes, Output, Views


class MDCS(PriorAdjusted):
    """Diversity loss, plus self-distillation of each expert from its weak to its strong view, on pictures it is already right about.

        L    = Σ_k CE_k + α · min(e/W, 1) · Σ_k KL_k
        KL_k = T²/|S_k| Σ_{i∈S_k} KL( p_k(x_i^w) ‖ p_k(x_i^s) ),   p_k = softmax(a_k/T),  p_k(x^w) without gradient, 0 if S_k is empty
        S_k  = { i : argmax a_k(x_i^w) = y_i }     ("confident instances"; all pictures if not `confident_only`)

    with a_k = z_k + λ_k log n as in `PriorAdjusted`, CE_k over both views, α = `alpha`, W = `warmup_epochs`, e the epoch from 1,
    T = `temperature` (published: 1; the factor T² keeps the gradient's size). The adjusted logits are used in all three places, as in
    the published code; so S_k is strict on rare classes for an expert with a large λ_k, and lenient for one with a small λ_k.

    `lambdas` = null spaces them evenly from −0.5 to 2.5 (the published −0.5, 1, 2.5 for K = 3; 1 for K = 1), so that their mean is 1
    and the mean of the raw logits is the balanced classifier. The first of `views` teaches the second.

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
        views: Sequence[str] = ("weak", "strong"),
        mask_empty: bool = False,
    ) -> None:
        if lambdas is None:
            lambdas = [1.0] if num_experts == 1 else torch.linspace(-0.5, 2.5, num_experts, dtype=torch.float64).tolist()
        super().__init__(classes, num_experts, lambdas, views=views, mask_empty=mask_empty)
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

    def distill_weight(self, epoch: float) -> float:
        """α · min(e/W, 1)."""
        return self.alpha * min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else self.alpha

    def forward(self, out: Output, views: Views, epoch: float) -> dict[str, Tensor]:
        adjusted_VBKC = self.adjusted(out.logits)
        log_probs_VBKC = adjusted_VBKC.log_softmax(-1)
        diversity = self.diversity(log_probs_VBKC, views.targets)

        if self.confident_only:
            confident_BK = adjusted_VBKC[0].detach().argmax(-1) == views.targets.argmax(-1)[:, None]
        else:
            confident_BK = torch.ones(adjusted_VBKC.shape[1:3], dtype=torch.bool, device=adjusted_VBKC.device)
        soft_VBKC = log_probs_VBKC if self.temperature == 1 else (adjusted_VBKC / self.temperature).log_softmax(-1)
        consistency = self.temperature**2 * masked_kl(soft_VBKC[0].detach(), soft_VBKC[1], confident_BK).sum()

        weight = self.distill_weight(epoch)
        return {
            "loss": diversity + weight * consistency,
            "diversity": diversity.detach(),
            "consistency": consistency.detach(),
            "distill_weight": diversity.new_full((), weight),
            "confident": confident_BK.to(diversity.dtype).mean(0),
            "confident_KB": confident_BK.T,
        }
