"""Sharpness-aware minimisation (arXiv:2010.01412): SGD along the gradient at the worst point nearby."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mdcs.errors import UserError


class SAM(torch.optim.SGD):
    """SGD whose gradient is taken at w + ρ·g/‖g‖ instead of w, with g the gradient at w and the norm over all weights.

        w' = w + ρ·g / (‖g‖₂ + 1e-12),    g' = ∇L(w'),    then the SGD step at w with g' (weight decay and momentum belong to it alone)

    `step` calls its closure twice, so a step costs two passes over the same views with the same dropout; `perturbed` is true during the
    second, which the metrics leave out. As in the published code of the flat teachers (arXiv:2212.13827), batch-norm updates its running
    statistics in both passes.
    Under DDP both gradients are means over all ranks, so w' is the same everywhere. Accumulated micro-batches are refused (only the last
    one's gradient could be taken at w'), and so is the gradient scaler of trainer.precision=16-mixed, which keeps the closure to itself.
    Gradient clipping by norm acts on both gradients; on the first it changes nothing but the rounding.
    """

    perturbed = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        rho: float = 0.05,
    ) -> None:
        if rho < 0:
            raise UserError(f"optim.rho={rho}: expected the radius of the perturbation, 0 (plain SGD, at twice the cost) or more")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        self.rho = rho

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """`closure` clears the gradients, computes the loss and its gradients, and returns the loss. Returns that at w."""
        if closure is None:
            raise UserError(
                "optim: SAM takes two gradients a step, which trainer.precision=16-mixed does not give; use bf16-mixed or 32-true"
            )
        with torch.enable_grad():
            loss = closure()
        learning = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        before = [weight.clone() for weight in learning]
        gradients = [weight.grad for weight in learning]
        scale = self.rho / (norm(gradients) + 1e-12)
        for weight, gradient in zip(learning, gradients, strict=True):
            weight.add_(gradient * scale)
        self.perturbed = True
        try:
            with torch.enable_grad():
                closure()
        finally:
            self.perturbed = False
            for weight, value in zip(learning, before, strict=True):
                weight.copy_(value)  # subtracting the perturbation again would round
        super().step()
        return loss


def norm(gradients: list[Tensor]) -> Tensor:
    """() the Euclidean norm of all gradients together, on their device."""
    return torch.nn.utils.get_total_norm(gradients)
