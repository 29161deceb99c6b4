"""Batch normalisation in training, forward and backward, on a CPU: mdcs.models.batch_norm against torch.nn.BatchNorm2d.

    python benchmarks/batch_norm.py        # a minute

16 to 48 channels are those of ResNet-32 for 64 pictures in two views, 72 those of three experts in one pass, 32 fill cache lines. Where so
many pixels are taken together as 1, both are the same code: with one thread, always.
"""

from collections.abc import Callable

import torch
from torch import nn

from mdcs.models.batch_norm import BatchNorm
from mdcs.training.memory import freed_memory_kept
from mdcs.training.trainer import fast_bfloat16
from side_by_side import machine, options, take_turns


def step_of(norm: nn.BatchNorm2d, x: torch.Tensor) -> Callable[[], object]:
    grad = torch.ones_like(x)
    return lambda: torch.autograd.grad(norm(x), (x, *norm.parameters()), grad)


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    lines = [machine()]
    cases = ((24, 16),) if chosen.quick else ((16, 32), (24, 16), (32, 16), (48, 8), (72, 16))
    with freed_memory_kept():  # as in training
        for precision in (torch.float32, torch.bfloat16) if fast_bfloat16("cpu") else (torch.float32,):
            for channels, side in cases:
                x = torch.randn(128, channels, side, side).to(precision).contiguous(memory_format=torch.channels_last).requires_grad_()
                plain, ours = nn.BatchNorm2d(channels), BatchNorm(channels)
                timing = take_turns({"torch": step_of(plain, x), "mdcs": step_of(ours, x)}, chosen.rounds, 1 if chosen.quick else 20)
                title = f"{channels} channels, {side} px, {str(precision).removeprefix('torch.')}, {ours.pixels_together(x)} together"
                lines += ["", timing.table("torch", title)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
