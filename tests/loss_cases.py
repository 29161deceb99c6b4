"""Losses called on made-up logits: what the tests of the losses share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mdcs.types import Classes, Loss, Output, Views

COUNTS = torch.tensor([500, 120, 40, 9, 2])


def classes_of(counts: Any) -> Classes:
    return Classes(tuple(str(c) for c in range(len(counts))), torch.as_tensor(counts))


def call(loss: Loss, logits_VBKC: Tensor, labels: Tensor, epoch: float = 10) -> dict[str, Tensor]:
    """The loss of logits for labels (B,) or target distributions (B, C)."""
    targets_BC = labels if labels.ndim == 2 else F.one_hot(labels, logits_VBKC.shape[-1]).float()
    return loss(Output(logits_VBKC, logits_VBKC), Views(logits_VBKC, targets_BC, labels), epoch)


def example(num_experts: int = 3, batch: int = 16, num_views: int = 2) -> tuple[Tensor, Tensor]:
    """Logits (V, B, K, 5) float64 and labels; the first half of the pictures is classified correctly in the first view."""
    generator = torch.Generator().manual_seed(1)
    labels_B = torch.randint(0, 5, (batch,), generator=generator)
    logits_VBKC = 2 * torch.randn(num_views, batch, num_experts, 5, generator=generator, dtype=torch.float64)
    logits_VBKC[0, : batch // 2] += 20 * F.one_hot(labels_B[: batch // 2], 5)[:, None]
    return logits_VBKC, labels_B


def soft(labels_B: Tensor, weight: float = 0.7, num_classes: int = 5) -> Tensor:
    """Targets (B, C) mixed with those of the reversed batch."""
    hard_BC = F.one_hot(labels_B, num_classes).double()
    return weight * hard_BC + (1 - weight) * hard_BC.flip(0)


def assert_golden(
    loss: Loss, logits: np.ndarray, labels: np.ndarray, epoch: float, vectors: Any, name: str, axes: Sequence[int] = (0, 1)
) -> None:
    """Loss and gradient in float64 (rtol 1e-6) and float32 (1e-5). `logits` (B, C), or (K, B, C) with `axes` to put K behind B."""
    for dtype, rtol, expected in ((torch.float64, 1e-6, vectors[f"{name}/loss"]), (torch.float32, 1e-5, vectors[f"{name}/loss_float32"])):
        leaf = torch.from_numpy(logits).to(dtype).requires_grad_()
        logits_BKC = leaf[:, None] if leaf.ndim == 2 else leaf.permute(*axes)
        value = call(loss, logits_BKC[None], torch.from_numpy(labels), epoch)["loss"]
        value.backward()
        assert value.dtype == dtype
        torch.testing.assert_close(value.item(), float(expected), rtol=rtol, atol=0)
        grad = torch.from_numpy(vectors[f"{name}/grad"]).to(dtype)
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, grad, rtol=rtol, atol=rtol * grad.abs().max().item())
