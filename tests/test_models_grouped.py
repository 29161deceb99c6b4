"""Experts computed in one pass of grouped convolutions, against the loop over experts."""

import copy

import pytest
import torch
from torch import Tensor

from mdcs.models.expert_net import ExpertNet
from mdcs.models.resnet_cifar import ResNetCifar


def pair(num_experts: int = 3, depth: int = 14, width: tuple[int, ...] = (4, 8, 12)) -> tuple[ExpertNet, ExpertNet]:
    """The loop and the grouped network, made from the same random numbers, in float64."""
    made = []
    for grouped in (False, True):
        torch.manual_seed(0)
        backbone = ResNetCifar(num_experts, depth, width, grouped)
        torch.manual_seed(1)
        made.append(ExpertNet(backbone, 5).double().to(memory_format=torch.channels_last))
    return made[0], made[1]


def assert_same_state(one: ExpertNet, other: ExpertNet, tolerance: float = 0.0) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("num_experts", [1, 2, 3])
@pytest.mark.parametrize("side", [8, 17])
def test_training_is_that_of_the_loop(num_experts: int, side: int) -> None:
    """Logits, and after three steps all weights, running statistics and counters: so the gradients are equal, too."""
    loop, grouped = pair(num_experts)
    assert_same_state(loop, grouped)
    optimisers = [torch.optim.SGD(net.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True) for net in (loop, grouped)]
    images = torch.randn(3, 6, 3, side, side, dtype=torch.float64).contiguous()
    for step in range(3):
        logits: list[Tensor] = []
        for net, optimiser in zip((loop, grouped), optimisers, strict=True):
            out = net(images[step].contiguous(memory_format=torch.channels_last))
            optimiser.zero_grad()
            (out.logits.square().mean() + out.features.sum(1).mean()).backward()
            optimiser.step()
            logits.append(out.logits)
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-9, atol=1e-9)
    assert_same_state(loop, grouped, 1e-8)
    assert grouped.state_dict()["backbone.layer2s.0.0.bn1.num_batches_tracked"] == 3


def test_files_fit_both_ways() -> None:
    loop, grouped = pair()
    for value in loop.state_dict().values():
        value.add_(torch.randn(value.shape)) if value.is_floating_point() else value.add_(7)
    grouped.load_state_dict(loop.state_dict())
    assert_same_state(loop, grouped)
    back = ExpertNet(ResNetCifar(3, 14, (4, 8, 12)), 5).double()
    back.load_state_dict(grouped.state_dict())
    assert_same_state(loop, back)
    assert_same_state(grouped, copy.deepcopy(grouped))


def test_the_state_is_shared_with_the_network() -> None:
    """As for any module: averaged weights are written through it."""
    _, grouped = pair()
    grouped.state_dict()["backbone.layer3s.1.0.conv1.weight"].zero_()
    wide = dict(grouped.named_parameters())["backbone.layer3s.wide.0.conv1.weight"]
    assert [bool(part.any()) for part in wide.chunk(3)] == [True, False, True]


def test_a_missing_expert_is_named() -> None:
    loop, grouped = pair()
    state = {name: value for name, value in loop.state_dict().items() if "layer2s.2." not in name}
    with pytest.raises(RuntimeError, match=r"layer2s\.wide\.0\.conv1\.weight"):
        grouped.load_state_dict(state)
    state = {name: value[:1] if "layer3s.1.0.conv1" in name else value for name, value in loop.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        grouped.load_state_dict(state)


def test_same_number_of_parameters() -> None:
    loop, grouped = pair()
    assert sum(p.numel() for p in loop.parameters()) == sum(p.numel() for p in grouped.parameters())
    assert len(list(grouped.parameters())) < len(list(loop.parameters()))
