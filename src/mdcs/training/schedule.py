"""The learning rate as a function of the epoch: no state, so a resumed run cannot restart it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mdcs.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Factor on the base learning rate, constant within an epoch. With i = epoch − 1 finished epochs, T = max_epochs, W = warmup_epochs:

    step:   γ^(number of milestones ≤ i)        milestones are fractions of the run, rounded to epochs
    cosine: ½(1 + cos(π i / T))                 so the last epoch is small but not 0
    both times (i + 1)/W while i < W: the first epoch starts at 1/W, epoch W is the first full one.

    Equals the published MDCS schedules (`lr_schedules.json` in the tests).
    """

    max_epochs: int
    schedule: Literal["step", "cosine"] = "cosine"
    warmup_epochs: int = 0
    milestones: Sequence[float] = (0.5, 0.8, 0.95)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise UserError(f"optim.warmup_epochs={self.warmup_epochs} must be >= 0")
        if not all(0 <= fraction <= 1 for fraction in self.milestones):
            raise UserError(f"optim.milestones={list(self.milestones)} are fractions of the run: give numbers from 0 to 1")

    def factor(self, epoch: int) -> float:
        """`epoch` counts from 1."""
        done = epoch - 1
        warmup = min((done + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        if self.schedule == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * done / self.max_epochs))
        return warmup * self.gamma ** sum(round(fraction * self.max_epochs) <= done for fraction in self.milestones)
