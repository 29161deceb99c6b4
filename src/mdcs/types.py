"""The types that pass between the rooms of mdcs, and the letters that name their axes.

Shape suffixes: V views · B pictures in a batch · N = V·B rows (or all pictures of a split) · K experts (branches, tokens or cluster
heads) · C classes · D features · M numbers of meta data · H, W pixels · R random numbers per picture. `logits_VBKC` has axes V, B, K, C.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mdcs.errors import UserError


class Batch(NamedTuple):
    """What a loader yields: pictures as they are stored, not yet augmented."""

    images: Tensor  # (V', B, 3, H, W) uint8; V' = 1, or V where workers cut one crop per view
    labels: Tensor  # (B,) int64
    index: Tensor  # type: ignore[assignment]  # (B,) int64, position in the split; hides tuple.index, which nobody calls
    meta: Tensor | None = None  # (B, M) float32, NaN = not known
    draw: Tensor | None = None  # (B,) int64, row of the epoch's random numbers; None = index. Differs where a picture comes twice an epoch
    part: "Part | None" = None  # the batches that it was loaded with


class Part:
    """Which of several batches of the same size, loaded at once, a batch is; their views can be made at once, too.

    `whole` has the pictures of all of them, one after the other, and this is the batch `number` = 0, 1, ... of them. Not a tuple: Lightning
    rebuilds tuples when it moves tensors, and `whole` must stay the same object for all of its parts.
    """

    def __init__(self, whole: Batch, number: int) -> None:
        self.whole = whole
        self.number = number


class Views(NamedTuple):
    """What augmentation yields and losses read."""

    images: Tensor  # (V, B, 3, H, W) float, dtype of the network's parameters
    targets: Tensor  # (B, C) class distribution: one-hot, smoothed or mixed
    index: Tensor  # type: ignore[assignment]  # (B,) int64
    meta: Tensor | None = None  # (B, M)


class Output(NamedTuple):
    """What a network yields, raw: no prior, no temperature. The training step unfolds N into (V, B)."""

    logits: Tensor  # (N, K, C), or (V, B, K, C)
    features: Tensor  # (N, K, D), or (V, B, K, D)


@dataclass(frozen=True)
class Classes:
    """Names and training counts of the classes, and their shot groups.

    `many` has n > many_above, `few` has n < few_below, `medium` is between, both ends included. Made once from the labels trained on.
    """

    names: tuple[str, ...]
    counts: Tensor  # (C,) int64
    many_above: int = 100
    few_below: int = 20

    def __post_init__(self) -> None:
        if len(self.names) != len(self.counts):
            raise UserError(f"{len(self.names)} class names for {len(self.counts)} class counts: both must have one entry per class")
        if self.few_below > self.many_above + 1:
            raise UserError(
                f"few_below={self.few_below} is above many_above={self.many_above}: a class would be many- and few-shot at once"
            )

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def of(labels: Tensor, names: Sequence[str], many_above: int = 100, few_below: int = 20) -> "Classes":
        """Count `labels` (N,) int64 into one `Classes`."""
        return Classes(tuple(names), torch.bincount(labels, minlength=len(names)), many_above, few_below)

    @property
    def prior(self) -> Tensor:
        """(C,) float64, π_c = n_c / Σ n."""
        return self.counts.double() / self.counts.sum()

    @property
    def many(self) -> Tensor:
        """(C,) bool."""
        return self.counts > self.many_above

    @property
    def medium(self) -> Tensor:
        """(C,) bool."""
        return ~self.many & ~self.few

    @property
    def few(self) -> Tensor:
        """(C,) bool."""
        return self.counts < self.few_below

    @property
    def groups(self) -> dict[str, Tensor]:
        """The three shot groups by name, in the order in which they are printed."""
        return {"many": self.many, "medium": self.medium, "few": self.few}


class Loss(nn.Module):
    """Turns a network's output into a scalar. `views` names the views of each picture that it wants, in order."""

    views: tuple[str, ...] = ("weak",)

    def forward(self, out: Output, views: Views, epoch: float) -> dict[str, Tensor]:
        """`out` unfolded to (V, B, K, C); `epoch` counts from 1. Returns "loss" with gradient and named parts, detached and unweighted."""
        raise NotImplementedError


class Backbone(nn.Module):
    """Grows K feature vectors per picture: (N, 3, H, W) -> (N, K, D)."""

    num_experts: int  # K
    num_features: int  # D

    def forward(self, images: Tensor, meta: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Policy(nn.Module):
    """Augments a batch of uint8 pictures (B, 3, H, W), reading `draws` uniform numbers in [0, 1) for each picture: (B, draws) float32."""

    draws: int

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        raise NotImplementedError
