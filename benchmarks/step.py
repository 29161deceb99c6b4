"""A training step of MDCS on CIFAR-100-LT, ResNet-32, K = 3, 64 pictures in two views: network, loss, backward, optimiser, without views.

    python benchmarks/step.py              # minutes

Speed-ups are against the plain way (plain.py), which runs in turn with the others in one process. The share of the limit is that of matrix
products in the precision used, measured in the same run; bfloat16 is left out where the processor is slow at it. What `mdcs train` gains by
keeping memory comes on top: memory.py.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from mdcs.losses.mdcs import MDCS
from mdcs.models.expert_net import ExpertNet
from mdcs.models.resnet_cifar import ResNetCifar
from mdcs.training.trainer import fast_bfloat16
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


def main(words: list[str] | None = None) -> str:
    chosen = options(__doc__, words)
    torch.manual_seed(0)
    rows, depth, calls = (4, 8, 1) if chosen.quick else (64, 32, 3)
    images, labels_B = torch.randn(2 * rows, 3, 32, 32), torch.randint(100, (rows,))
    ways = {"plain": plain_way(images, labels_B, depth)}
    precisions = ("fp32", "bf16") if chosen.quick or fast_bfloat16("cpu") else ("fp32",)
    for precision in precisions:
        for grouped in (False, True):
            ways[f"{precision}, {'grouped' if grouped else 'loop'}"] = fast_way(images, labels_B, depth, precision, grouped)
    timing = take_turns(ways, chosen.rounds, calls)
    lines = [machine(), "", timing.table("plain"), ""]
    if "bf16" not in precisions:
        lines += ["Without bfloat16, which this processor is slow at.", ""]
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
