"""What one training step asks of the device: operations that start a kernel, and points where the processor would wait for it.

    python benchmarks/launches.py          # seconds, the same counts on every machine

Counted on the CPU where torch hands operations to a device: views, metadata and empty tensors are not counted, for they start nothing. On a
GPU every counted operation costs the processor some microseconds, and small networks such as ResNet-32 are bound by exactly that.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mdcs.losses.mdcs import MDCS
from mdcs.models.expert_net import ExpertNet
from mdcs.models.resnet_cifar import ResNetCifar
from mdcs.types import Classes, Output, Views
from plain import ExpertResNet, mdcs_loss
from side_by_side import options

# They allocate or describe memory.
STARTS_NOTHING = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "promote_types", "resize_", "alias"}
STARTS_NOTHING |= {"_record_function_enter_new", "_record_function_exit", "_unsafe_view", "lift_fresh", "set_", "sym_size", "is_same_size"}
TWO_KERNELS = {"constant_pad_nd", "slice_backward", "select_backward"}  # zeros, then a copy into them
# A value comes to the processor, or the size of a result depends on values.
WAITS = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


class Operations(TorchDispatchMode):
    """Counts, while it is active, the operations that would start kernels on a GPU, and those for whose result the processor would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in STARTS_NOTHING:
            self.launches[name] += 2 if name in TWO_KERNELS else 1
        if name in WAITS or (name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted(into: dict[str, Operations], name: str) -> Iterator[None]:
    with Operations() as operations:
        yield
    into[name] = operations


def step_of(grouped: bool, num_experts: int = 3, depth: int = 32, rows: int = 4) -> dict[str, Operations]:
    """The parts of a step of MDCS on CIFAR-100: network, loss, backward, optimiser. On a GPU the optimiser updates fused, as here."""
    classes = Classes(tuple(map(str, range(100))), torch.arange(5, 505, 5))
    net, loss = (
        ExpertNet(ResNetCifar(num_experts, depth, grouped=grouped), 100).to(memory_format=torch.channels_last),
        MDCS(classes, num_experts),
    )
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    images, labels_B = torch.randn(2 * rows, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(rows)
    views = Views(images, F.one_hot(labels_B, 100).float(), labels_B)
    found: dict[str, Operations] = {}
    for _ in range(2):  # the second has momentum buffers
        optimiser.zero_grad()
        with counted(found, "network"):
            out = Output(*(x.unflatten(0, (2, rows)) for x in net(images)))
        with counted(found, "loss"):
            parts = loss(out, views, 1)
        with counted(found, "backward"):
            parts["loss"].backward()
        with counted(found, "optimiser"):
            optimiser.step()
    return found


def plain_step(num_experts: int = 3, depth: int = 32, rows: int = 4) -> dict[str, Operations]:
    """The same in the plain way; its optimiser updates with foreach, which is torch's choice on a GPU."""
    net = ExpertResNet(num_experts, 100, depth)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True, foreach=True)
    images, labels_B, counts_C = torch.randn(2 * rows, 3, 32, 32), torch.arange(rows), torch.arange(5, 505, 5)
    lambdas = torch.linspace(-0.5, 2.5, num_experts).tolist()
    found: dict[str, Operations] = {}
    for _ in range(2):
        optimiser.zero_grad()
        with counted(found, "network"):
            logits: list[Tensor] = net(images)
        with counted(found, "loss"):
            loss = mdcs_loss(logits, labels_B, counts_C, lambdas, 1)
        with counted(found, "backward"):
            loss.backward()
        with counted(found, "optimiser"):
            optimiser.step()
    return found


def main(words: list[str] | None = None) -> str:
    options(__doc__, words)
    torch.manual_seed(0)
    ways = {"plain": plain_step(), "loop over experts": step_of(False), "model.grouped=true": step_of(True)}
    parts = list(ways["plain"])
    lines = [f"| K = 3, ResNet-32 | {' | '.join(parts)} | step | waits |", "|---|" + "---|" * (len(parts) + 2)]
    for name, found in ways.items():
        numbers = [sum(found[part].launches.values()) for part in parts]
        waits = sum(sum(operations.waits.values()) for operations in found.values())
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {sum(numbers)} | {waits} |")
    return "Operations that start a kernel, and waits for the device:\n\n" + "\n".join(lines)


if __name__ == "__main__":
    print(main())
