"""BalPoE: a balanced product of experts (arXiv:2206.05260)."""

from collections.abc import Sequence

from mdcs.losses.prior import PriorAdjusted, evenly
from mdcs.types import Classes


class BalPoE(PriorAdjusted):
    """Cross-entropy of a_k = z_k + λ_k log n, averaged over the experts: `PriorAdjusted` with λ from 0 to 2.

    `lambdas` = null spaces them evenly (0, 1, 2 for K = 3; 1 for K = 1), so that their mean is 1 and the product of the experts, which
    is the mean of their raw logits, is the balanced classifier. Published together with mixup: set `augment.mixup`.
    """

    def __init__(
        self,
        classes: Classes,
        num_experts: int = 3,
        lambdas: Sequence[float] | None = None,
        views: Sequence[str] = ("weak",),
        mask_empty: bool = False,
    ) -> None:
        lambdas = evenly(0.0, 2.0, num_experts) if lambdas is None else lambdas
        super().__init__(classes, num_experts, lambdas, reduction="mean", views=views, mask_empty=mask_empty)
