"""Mixup, cutmix and label smoothing, on the views of a batch and their targets."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdcs.errors import UserError
from mdcs.randomness import key
from mdcs.types import Views


class Box(NamedTuple):
    """A rectangle of pixels, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int


def box_around(row: int, column: int, share: float, height: int, width: int) -> Box:
    """The box with `share` of the picture's area, sides rounded down, centred at a pixel and clipped at the border."""
    side = math.sqrt(share)
    rows, columns = int(height * side), int(width * side)
    top, left = row - rows // 2, column - columns // 2
    return Box(max(top, 0), min(top + rows, height), max(left, 0), min(left + columns, width))


def smooth(targets_BC: Tensor, amount: float) -> Tensor:
    """(1 − s)·t + s/C."""
    return targets_BC * (1 - amount) + amount / targets_BC.shape[1]


@torch.no_grad()
def mixup(views: Views, share: float) -> Views:
    """λx + (1 − λ)x' and λt + (1 − λ)t' with λ = `share` (arXiv:1710.09412); picture i's partner is picture B − 1 − i. In place."""
    partners_VB3HW = views.images.flip(1)
    images_VB3HW = views.images.mul_(share).add_(partners_VB3HW, alpha=1 - share)
    return views._replace(images=images_VB3HW, targets=views.targets * share + views.targets.flip(0) * (1 - share))


@torch.no_grad()
def cutmix(views: Views, box: Box) -> Views:
    """The partner's pixels within `box`, and its target by the box's share of the area (arXiv:1905.04899). In place."""
    height, width = views.images.shape[3:]
    inside = (..., slice(box.top, box.bottom), slice(box.left, box.right))
    views.images[inside] = views.images[inside].flip(1)
    share = 1 - (box.bottom - box.top) * (box.right - box.left) / (height * width)
    return views._replace(targets=views.targets * share + views.targets.flip(0) * (1 - share))


class Mix:
    """Views -> Views, the targets smoothed and, with `probability`, the whole batch mixed with its reverse.

    `mixup`, `cutmix`: α of λ ~ Beta(α, α), 0 = off; where both are on, cutmix is chosen with `switch_probability`. One λ and one box for
    the batch and all of its views, so that the views of a picture still show the same thing (published for one view: timm's batch mode;
    its older releases cut a pixel off boxes with odd sides). The order of pictures is random, so the partners are. A batch of odd size
    leaves its middle picture as it is. Meta data stay those of the picture itself.
    The draw is a function of (`seed`, epoch, step), the same on all ranks; partners are of the same rank and micro-batch.
    """

    def __init__(
        self,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        probability: float = 1.0,
        switch_probability: float = 0.5,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        if mixup < 0 or cutmix < 0:
            raise UserError(f"augment.mixup={mixup}, augment.cutmix={cutmix}: expected α > 0 of a Beta distribution, or 0 for off")
        for name, value in (("mix_probability", probability), ("switch_probability", switch_probability)):
            if not 0 <= value <= 1:
                raise UserError(f"augment.{name}={value}: expected a probability, 0 to 1")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"augment.label_smoothing={label_smoothing}: expected the share of the target given to all classes, in [0, 1)")
        self.mixup = mixup
        self.cutmix = cutmix
        self.probability = probability
        self.switch_probability = switch_probability
        self.label_smoothing = label_smoothing
        self.seed = seed

    @property
    def mixes(self) -> bool:
        """Whether pictures may be mixed."""
        return bool(self.mixup or self.cutmix) and self.probability > 0

    def __call__(self, views: Views, epoch: int, step: int) -> Views:
        """`views.images` is changed in place."""
        if self.label_smoothing:
            views = views._replace(targets=smooth(views.targets, self.label_smoothing))
        if not self.mixes:
            return views
        draw = np.random.default_rng(key(self.seed, "mix", epoch, step))
        mixed, switch = draw.random(2)
        if mixed >= self.probability:
            return views
        if self.cutmix and (not self.mixup or switch < self.switch_probability):
            height, width = views.images.shape[3:]
            row, column = draw.integers([height, width]).tolist()
            return cutmix(views, box_around(row, column, 1 - draw.beta(self.cutmix, self.cutmix), height, width))
        return mixup(views, draw.beta(self.mixup, self.mixup))
