"""A training step of MDCS on CIFAR-100-LT, ResNet-32, K = 3, 64 pictures in two views: network, loss, backward, optimiser, without views.

    python benchmarks/step.py              # minutes

Speed-ups are against the plain way (plain.py), which runs in turn with the others in one process. `memory kept` is what `mdcs train` does
on a CPU (mdcs.training.memory). The share of the limit is that of matrix products in the precision used, measured in the same run.
"""

import contextlib
from collections.abc import Callable

import torch
from torch.nn import functional as F

from mdcs.losses.mdcs import MDCS
from mdcs.models.expert_net import ExpertNet
from mdcs.models.resnet_cifar import ResNetCifar
from mdcs.training.memory import freed_memory_kept
from mdcs.types import Classes, Output, Views
from plain import ExpertResNet, mdcs_loss
from side_by_side import limits, machine, options, take_turns

COUNTS = (500 * 0.01 ** (torch.arange(100) / 99)).long()
GFLOP_A_VIEW = 3 * 0.2007  # forward and backward; a multiply-add is two operations


def plain_way(images: torch.Tensor, labels_B: torch.Tensor, depth: int) -> Callable[[], None]:
    net = ExpertResNet(3, 100, depth)
    optimiser = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)

    def step() -> None:
        optimiser.zero_grad()
        mdcs_loss(net(images), labels_B, COUNTS, [-0.5, 1.0, 2.5], 1).backward()
        optimiser.step()

    return step


def fast_way(images: torch.Tensor, labels_B: torch.Tensor, depth: int, precision: str, grouped: bool) -> Callable[[], None]:
    """As the training module has it."""
    net = ExpertNet(ResNetCifar(3, depth, grouped=grouped), 100).to(memory_format=torch.channels_last)
    loss = MDCS(Classes(tuple(map(str, range(100))), COUNTS))
    optimiser = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    images = images.contiguous(memory_format=torch.channels_last)
    views = Views(images.unflatten(0, (2, -1)), F.one_hot(labels_B, 100).float(), labels_B)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = net(images)
        loss(Output(*(x.unflatten(0, (2, -1)) for x in out)), views, 1)["loss"].backward()
        optimiser.step()

    return step


def within(context: Callable[[], contextlib.AbstractContextManager[None]], way: Callable[[], None], calls: int) -> Callable[[], None]:
    """`calls` steps inside a context, after one that is not timed apart: memory is kept from step to step."""

    def steps() -> None:
        with context():
            for _ in range(calls):
                way()

    return steps


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    torch.manual_seed(0)
    rows, depth, calls = (4, 8, 1) if chosen.quick else (64, 32, 5)
    images, labels_B = torch.randn(2 * rows, 3, 32, 32), torch.randint(100, (rows,))
    ways = {
        "plain": within(contextlib.nullcontext, plain_way(images, labels_B, depth), calls),
        **{
            f"{precision}, {'grouped' if grouped else 'loop'}{', memory kept' if kept else ''}": within(
                freed_memory_kept if kept else contextlib.nullcontext, fast_way(images, labels_B, depth, precision, grouped), calls
            )
            for precision, grouped, kept in (
                ("fp32", False, False),
                ("fp32", False, True),
                ("fp32", True, True),
                ("bf16", False, False),
                ("bf16", False, True),
                ("bf16", True, True),
            )
        },
    }
    timing = take_turns(ways, chosen.rounds, warm_up=0)
    for way, rounds in timing.rounds.items():
        timing.rounds[way] = [(wall / calls, used / calls) for wall, used in rounds]
    lines = [machine(), "", timing.table("plain"), ""]
    found = limits(chosen.quick)
    lines += [f"- {name}: {value:.0f}" for name, value in found.items()]
    if not chosen.quick:
        for way in timing.rounds:
            rate = GFLOP_A_VIEW * 2 * rows / timing.median(way)
            limit = found[f"matmul {'bfloat16' if 'bf16' in way else 'float32'}, GFLOP/s"]
            lines.append(
                f"- {way}: {2 * rows / timing.median(way) / 2:.0f} pictures/s, {rate:.0f} GFLOP/s, {rate / limit:.0%} of the limit"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
