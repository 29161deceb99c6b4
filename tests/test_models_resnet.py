"""ResNet experts against the published networks: shapes, arithmetic, forward in evaluation and training mode."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import convolution_macs, golden
from mdcs.errors import UserError
from mdcs.models.expert_net import ExpertNet
from mdcs.models.pretrained import published_mdcs, published_model
from mdcs.models.resnet import ResNet
from test_models import hash_u

VECTORS = golden("backbones_filled.npz")
ARCHITECTURES = golden("architectures.json")
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet10_imagenet_lt": {"depth": 10},
    "resnet50_imagenet_lt": {"depth": 50},
    "resnet50_inat18": {"depth": 50},
    "resnet50_share_layer3": {"depth": 50, "share_layer3": True},
    "resnext50_imagenet_lt": {"depth": 50, "groups": 32, "width_per_group": 4},
    "resnet152_places_lt": {"depth": 152, "width": (64, 128, 256, 512)},
    "resnet152_share_layer3": {"depth": 152, "width": (64, 128, 256, 512), "share_layer3": True},
}


def filled(name: str, shape: list[int]) -> Tensor:
    """The golden value of the published tensor `name`."""
    u = torch.from_numpy(hash_u(name, math.prod(shape))).view(*shape)
    if len(shape) == 4:
        return (2 * u - 1) * math.sqrt(6 / math.prod(shape[1:]))
    if len(shape) == 2:
        return 2 * u - 1
    if name.endswith(("running_mean", ".bias")):
        return 0.2 * (u - 0.5)
    return 0.5 + u if name.endswith("running_var") else 0.75 + 0.5 * u


def filled_state(architecture: str) -> dict[str, Tensor]:
    shapes = ARCHITECTURES[architecture]["params"] | ARCHITECTURES[architecture]["buffers"]
    return {name: filled(name, shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def on_meta(num_classes: int, **arguments: Any) -> ExpertNet:
    with torch.device("meta"):
        return ExpertNet(ResNet(**arguments), num_classes)


def test_the_fill_rule_is_the_golden_one() -> None:
    np.testing.assert_array_equal(hash_u("abc", 8), VECTORS["selftest/hash_u_abc_first8"])
    np.testing.assert_array_equal(2 * (2 * hash_u("input", 8) - 1), VECTORS["selftest/hash_image_input_first8"])


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_the_published_ones(name: str) -> None:
    architecture = ARCHITECTURES[name]
    num_classes = architecture["kwargs"]["num_classes"]
    net = on_meta(num_classes, **NETWORKS[name])
    ours = {key: list(value.shape) for key, value in net.named_parameters() if key != "heads.weight"}
    ours |= {f"backbone.linears.{k}.weight": list(net.heads.weight.shape[1:]) for k in range(3)}
    assert ours == architecture["params"]
    assert {key: list(value.shape) for key, value in net.named_buffers()} == architecture["buffers"]
    assert sum(parameter.numel() for parameter in net.parameters()) == architecture["params_total"]
    shared = [value.numel() for key, value in net.named_parameters() if "s." not in key]
    assert sum(shared) == architecture["params_shared"]
    assert (architecture["params_total"] - sum(shared)) / 3 == architecture["params_per_expert"]
    assert net.heads.scale == architecture["scale_s"]


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_accumulates_are_the_published_ones(name: str) -> None:
    architecture = ARCHITECTURES[name]
    net = on_meta(architecture["kwargs"]["num_classes"], **NETWORKS[name]).eval()
    images = torch.empty(1, 3, architecture["input_size"], architecture["input_size"], device="meta")
    assert convolution_macs(net, images) + net.heads.weight.numel() == architecture["conv_and_linear_macs"]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50_imagenet_lt", "resnext50_imagenet_lt")]


@pytest.mark.parametrize("name", ["resnet50_share_layer3", *SLOW])
def test_golden_forward(name: str) -> None:
    net = published_mdcs(filled_state(name)).eval()
    images = torch.from_numpy(2 * (2 * hash_u("input", 2 * 3 * 224 * 224) - 1)).view(2, 3, 224, 224)
    with torch.no_grad():
        out = net(images)
    torch.testing.assert_close(out.logits, torch.from_numpy(VECTORS[f"{name}/eval/logits"]), rtol=0, atol=1e-8)
    torch.testing.assert_close(out.logits.mean(1), torch.from_numpy(VECTORS[f"{name}/eval/output"]), rtol=0, atol=1e-8)
    torch.testing.assert_close(out.features, torch.from_numpy(VECTORS[f"{name}/eval/feat"]), rtol=1e-10, atol=1e-8)
    with torch.no_grad():
        out = net.train()(images)
    torch.testing.assert_close(out.logits, torch.from_numpy(VECTORS[f"{name}/train/logits"]), rtol=0, atol=1e-8)
    for buffer in ("running_mean", "running_var"):
        ours = getattr(net.backbone.bn1, buffer)
        torch.testing.assert_close(ours, torch.from_numpy(VECTORS[f"{name}/train/bn1_{buffer}"]), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_are_recognised(name: str) -> None:
    architecture = ARCHITECTURES[name]
    shapes = architecture["params"] | architecture["buffers"]
    state = {f"module.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
    net = published_mdcs(state)
    assert sum(parameter.numel() for parameter in net.parameters()) == architecture["params_total"]
    assert net.heads.weight.shape == (3, net.backbone.num_features, architecture["kwargs"]["num_classes"])
    node = published_model(state)
    assert (node.pop("_target_"), node.pop("num_experts"), node.pop("head")) == ("mdcs.models.resnet.ResNet", 3, "cosine")
    defaults = {"width": (64, 128, 192, 384), "groups": 1, "width_per_group": 64, "share_layer3": False}
    assert {key: tuple(value) if key == "width" else value for key, value in node.items()} == defaults | NETWORKS[name]


def test_initialisation() -> None:
    """Convolutions from N(0, 2/(k²·channels out)): of 20,000 numbers and more the s.d. within 5 %, the mean within 5 standard errors."""
    torch.manual_seed(0)
    net = ResNet(2, 50, (32, 64, 64, 64), groups=4, width_per_group=32)
    seen = 0
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(module.weight.mean().item()) < 5 * expected / module.weight.numel() ** 0.5, name
            seen += 1
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert seen > 10
    assert not torch.equal(net.layer3s[0][0].conv1.weight, net.layer3s[1][0].conv1.weight)


@pytest.mark.parametrize("num_experts", [1, 4])
@pytest.mark.parametrize("share_layer3", [False, True])
@pytest.mark.parametrize("depth", [10, 50])
def test_any_number_of_experts_and_input_size(num_experts: int, share_layer3: bool, depth: int) -> None:
    backbone = ResNet(num_experts, depth, (8, 8, 12, 16), share_layer3=share_layer3)
    net = ExpertNet(backbone, 7).to(memory_format=torch.channels_last)
    for size in (32, 75):
        out = net(torch.randn(2, 3, size, size))
        assert out.logits.shape == (2, num_experts, 7)
        assert out.features.shape == (2, num_experts, backbone.num_features)
    out.logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_an_expert_learns_through_its_own_stages_and_the_shared_ones() -> None:
    net = ResNet(2, 10, (8, 8, 8, 8))
    net(torch.randn(2, 3, 32, 32))[:, 1].square().sum().backward()
    reached = {name for name, parameter in net.named_parameters() if parameter.grad.abs().sum() > 0}
    assert reached == {name for name, _ in net.named_parameters() if not name.startswith(("layer3s.0", "layer4s.0"))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 51}, r"^model.depth=51: there is 10, 18, 34, 50, 101, 152$"),
        ({"width": (64, 128, 192)}, r"^model.width=\[64, 128, 192\]: give the planes of four stages"),
        ({"depth": 18, "groups": 32}, r"^model.groups=32, width_per_group=64 need bottlenecks"),
        ({"width": (8, 8, 8, 8), "groups": 2, "width_per_group": 4}, r"leave a stage without channels"),
    ],
)
def test_impossible_shapes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ResNet(**arguments)
