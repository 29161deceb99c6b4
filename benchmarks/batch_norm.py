"""Batch normalisation in training, forward and backward, on a CPU: mdcs.models.batch_norm against torch.nn.BatchNorm2d.

    python benchmarks/batch_norm.py        # half a minute

Activations are those of ResNet-32 for 64 pictures in two views; 72 channels are those of three experts in one pass. Where the processor's
vectors divide the channels both are the same code.
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
    precisions = [torch.float32, torch.bfloat16] if fast_bfloat16("cpu") else [torch.float32]
    lines = [f"{machine()}; CPU capability {torch.backends.cpu.get_cpu_capability()}"]
    with freed_memory_kept():  # as in training
        for precision in precisions:
            for channels, side in ((16, 32), (24, 16), (48, 8), (72, 16)):
                shape = (2 if chosen.quick else 128, channels, side, side)
                x = torch.randn(shape).to(precision).contiguous(memory_format=torch.channels_last).requires_grad_()
                norms = {"torch": nn.BatchNorm2d(channels), "mdcs": BatchNorm(channels)}
                ways = {name: step_of(norm, x) for name, norm in norms.items()}
                timing = take_turns(ways, chosen.rounds, 1 if chosen.quick else 20)
                pixels = norms["mdcs"].pixels_at_a_time(x)  # type: ignore[operator]
                words_of = f"{channels} channels, {side} px, {str(precision).removeprefix('torch.')}, {pixels} at a time"
                lines += ["", timing.table("torch", words_of)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
