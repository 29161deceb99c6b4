"""The MDCS loss, forward and backward, for 64 pictures in two views and K = 3, against the loss expert by expert (plain.py).

    python benchmarks/loss.py              # a minute

"plain" follows the published procedure, with all that it computes and does not use; "lean" is the same without that. The gradient is that
of the network's logits, which for plain are one tensor, as published, and for lean one tensor for each expert.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from mdcs.losses.mdcs import MDCS
from mdcs.types import Classes, Output, Views
from plain import lean_mdcs_loss, mdcs_loss
from side_by_side import machine, options, take_turns

LAMBDAS = [-0.5, 1.0, 2.5]


def ways_of(num_classes: int, rows: int = 64) -> dict[str, Callable[[], torch.Tensor]]:
    """Each returns the gradient of the loss, (2, B, K, C)."""
    random = torch.Generator().manual_seed(0)
    counts_C = (500 * 0.01 ** (torch.arange(num_classes) / (num_classes - 1))).long()
    labels_B = torch.randint(num_classes, (rows,), generator=random)
    logits_VBKC = torch.randn(2, rows, 3, num_classes, generator=random)
    logits_VBKC[:, : rows // 2].scatter_add_(3, labels_B[: rows // 2, None, None].expand(2, -1, 3, 1), torch.full((2, rows, 3, 1), 20.0))
    logits_VBKC.requires_grad_()
    stacked_NKC = logits_VBKC.detach().flatten(0, 1).clone().requires_grad_()
    of_experts = [logits_VBKC.detach()[:, :, k].flatten(0, 1).clone().requires_grad_() for k in range(3)]
    loss = MDCS(Classes(tuple(map(str, range(num_classes))), counts_C))
    views = Views(torch.empty(0), F.one_hot(labels_B, num_classes).float(), labels_B)

    def plain() -> torch.Tensor:
        loss = mdcs_loss(stacked_NKC.transpose(0, 1), labels_B, counts_C, LAMBDAS, 5)
        return torch.autograd.grad(loss, stacked_NKC)[0].unflatten(0, (2, rows))

    def lean() -> torch.Tensor:
        gradients = torch.autograd.grad(lean_mdcs_loss(of_experts, labels_B, counts_C, LAMBDAS, 5), of_experts)
        return torch.stack([gradient.unflatten(0, (2, rows)) for gradient in gradients], dim=2)

    def fast() -> torch.Tensor:
        return torch.autograd.grad(loss(Output(logits_VBKC, logits_VBKC), views, 5)["loss"], logits_VBKC)[0]

    return {"plain": plain, "lean": lean, "mdcs": fast}


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    lines = [machine(), ""]
    for num_classes, calls in ((10, 2), (20, 2)) if chosen.quick else ((100, 50), (1000, 20), (8142, 5)):
        ways = ways_of(num_classes)
        timing = take_turns(ways, chosen.rounds, calls)
        lines += [timing.table("plain", f"C = {num_classes}"), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
