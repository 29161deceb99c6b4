"""RIDE: routing diverse experts (arXiv:2010.01809), its first stage: LDAM for each expert, and a term that drives them apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcs.losses.algebra import empty_shift, widened
from mdcs.losses.ldam import LDAM
from mdcs.types import Classes, Output, Views


class RIDE(LDAM):
    """LDAM-DRW of each expert, plus f times its divergence from the mean of the experts.

        L   = Σ_k [ LDAM_k + f · T̄² · mean_vi KL( softmax(z̄/T) ‖ softmax(z_k/T) ) ],      z̄ = mean_k z_k without gradient
        T_c = (ρ·C·π_c + 1 − ρ) / max_c(ρ·C·π_c + 1 − ρ),   T̄ = mean_c T_c;   T = 1 until `reweight_epoch`

    f = `diversity_factor`, negative to push the experts apart; ρ = `temperature_factor`; π the class frequencies. T divides the logits
    class by class, so rare classes are sharper and differ more. The published code trains the mean of the logits where f = 0; here
    f = 0 is LDAM of each expert. Its routing stage (a second training) and its distillation are not here.
    Parts: margin, diversity (the sum of T̄²·KL over the experts, before f).
    """

    def __init__(
        self,
        classes: Classes,
        num_experts: int = 3,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_epoch: int | None = None,
        beta: float = 0.9999,
        diversity_factor: float = -0.2,
        temperature_factor: float = 0.05,
        views: Sequence[str] = ("weak",),
        mask_empty: bool = False,
    ) -> None:
        super().__init__(classes, num_experts, max_margin, scale, reweight_epoch, beta, views, mask_empty)
        self.diversity_factor = diversity_factor
        self.temperature_factor = temperature_factor

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, diversity × {self.diversity_factor:g}"

    def temperatures(self, epoch: float, dtype: torch.dtype) -> Tensor:
        """(C,) T_c, 1 for the most frequent class. C counts the classes that have pictures."""
        counts_C = self.counts_C.to(dtype)
        if not self.reweights(epoch):
            return torch.ones_like(counts_C)
        relative_C = counts_C / counts_C.sum() * (counts_C > 0).sum()
        unscaled_C = self.temperature_factor * relative_C + 1 - self.temperature_factor
        return unscaled_C / unscaled_C.max()

    def forward(self, out: Output, views: Views, epoch: float) -> dict[str, Tensor]:
        logits_VBKC = widened(out.logits)
        dtype = logits_VBKC.dtype
        logits_VBKC = logits_VBKC + empty_shift(self.counts_C, dtype)
        margin = self.margin_loss(logits_VBKC, views.targets.to(dtype), epoch)

        temperature_C, present_C = self.temperatures(epoch, dtype), self.counts_C > 0
        mean_temperature = (temperature_C * present_C).sum() / present_C.sum()
        log_mean_VB1C = (logits_VBKC.detach().mean(2, keepdim=True) / temperature_C).log_softmax(-1)
        log_expert_VBKC = (logits_VBKC / temperature_C).log_softmax(-1)
        kl_VBK = (log_mean_VB1C.exp() * (log_mean_VB1C - log_expert_VBKC)).sum(-1)
        diversity = mean_temperature**2 * kl_VBK.mean((0, 1)).sum()
        return {"loss": margin + self.diversity_factor * diversity, "margin": margin.detach(), "diversity": diversity.detach()}
