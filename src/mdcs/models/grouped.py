"""The stages of all experts as one stage of grouped convolutions, stored as if they were apart."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Grouped(nn.Module):
    """Computes K stages of equal shape side by side, (N, K·channels, H, W) of them, with the channels of expert k in the k-th K-th.

    `wide` is one stage with K times the channels, whose parameters and buffers are those of the stages `apart` one after the other along
    their first axis. Its state has the names and shapes of `apart` (0.conv1.weight, 1.conv1.weight, ...), so that checkpoints and published
    weights fit both ways of computing; optimiser states do not.
    """

    def __init__(self, wide: nn.Module, apart: Iterable[nn.Module]) -> None:
        super().__init__()
        stages = nn.ModuleList(apart)
        self.wide = wide
        self.num_experts = len(stages)
        self.register_state_dict_post_hook(_split)
        self.register_load_state_dict_pre_hook(_join)
        self.load_state_dict(stages.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wide(x)
        return out


def _split(module: nn.Module, state: dict[str, Tensor], prefix: str, _: dict[str, Any]) -> None:
    """Views of each expert's part, expert by expert. The number of batches that a batch-norm has seen has no parts: all get it."""
    assert isinstance(module, Grouped)
    start, number = f"{prefix}wide.", module.num_experts
    wide = {name.removeprefix(start): state.pop(name) for name in [name for name in state if name.startswith(start)]}
    for k in range(number):
        for name, value in wide.items():
            state[f"{prefix}{k}.{name}"] = value.chunk(number)[k] if value.ndim else value


def _join(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The reverse. A name that not all experts have stays as it is, for `load_state_dict` to complain about."""
    assert isinstance(module, Grouped)
    first = f"{prefix}0."
    for name in [name.removeprefix(first) for name in state if name.startswith(first)]:
        names = [f"{prefix}{k}.{name}" for k in range(module.num_experts)]
        if all(name in state for name in names):
            parts = [state.pop(name) for name in names]
            state[f"{prefix}wide.{name}"] = torch.cat(parts) if parts[0].ndim else parts[0]
