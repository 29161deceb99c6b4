"""Exponential moving average of a network's weights (mean teacher, arXiv:1703.01780)."""

import copy

import torch
from torch import Tensor, nn

from mdcs.errors import UserError
from mdcs.models.expert_net import ExpertNet
from mdcs.types import Output


class AveragedNet(nn.Module):
    """A copy of `net` whose weights follow it: θ' ← dθ' + (1 − d)θ after each optimiser step, never trained itself.

    d = min(`decay`, t/(t + 1)) in step t = 0, 1, ...: the plain mean of the first steps, so that the random initial weights are forgotten
    at once. Batch-norm's running statistics are averaged alike, its counters copied. It always predicts in evaluation mode. Needs weights
    in full precision: bfloat16 rounds (1 − d)θ away.
    """

    def __init__(self, net: ExpertNet, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"optim.ema_decay={decay}: expected a number in [0, 1), for example 0.999")
        self.decay = decay
        self.net = copy.deepcopy(net).requires_grad_(False)

    @torch.no_grad()
    def update(self, net: ExpertNet, step: int) -> None:
        """Take in the weights of `net` after optimiser step 0, 1, ... of the run."""
        share = 1 - min(self.decay, step / (step + 1))
        for average, value in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)

    @torch.no_grad()
    def forward(self, images: Tensor, meta: Tensor | None = None) -> Output:
        """As of the network that it follows, in evaluation mode."""
        out: Output = self.net.eval()(images, meta)
        return out
