"""ResNet-CIFAR experts against the published network: names, forward, gradients, one step, a trajectory."""

import zlib

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import convolution_macs, golden
from mdcs.errors import UserError
from mdcs.losses.mdcs import MDCS
from mdcs.models.expert_net import ExpertNet, unit
from mdcs.models.pretrained import published_mdcs, published_model
from mdcs.models.resnet_cifar import ResNetCifar
from mdcs.types import Classes, Output, Views

VECTORS = golden("resnet32_experts.npz")
DEAD = ("linear_head", "linear_few", "mlp")  # in the published network, but never in its forward


def from_published(prefix: str, num_classes: int, grouped: bool = False) -> ExpertNet:
    """Our network with the published weights, in float64."""
    net = ExpertNet(ResNetCifar(3, 32, (16, 24, 48), grouped), num_classes)
    names = {name.removeprefix(f"{prefix}/state/"): name for name in VECTORS.files if name.startswith(f"{prefix}/state/")}
    state = {
        name: torch.from_numpy(VECTORS[key])
        for name, key in names.items()
        if not any(dead in name for dead in DEAD) and not name.startswith("backbone.linears")
    }
    state["heads.weight"] = torch.stack([torch.from_numpy(VECTORS[names[f"backbone.linears.{k}.weight"]]) for k in range(3)])
    net.load_state_dict(state)
    return net.double()


def published(net: ExpertNet, name: str, of=lambda parameter: parameter) -> Tensor:
    """What `of` reads from the parameter or buffer that carries the published `name`."""
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    if name.startswith("backbone.linears"):
        return of(tensors["heads.weight"])[int(name.split(".")[2])]
    return of(tensors[name])


def step(net: ExpertNet, optimiser: torch.optim.Optimizer, images: Tensor, labels_B: Tensor, counts: Tensor, epoch: int):
    """One optimiser step on rows [weak | strong]."""
    num_classes = len(counts)
    classes = Classes(tuple(map(str, range(num_classes))), counts)
    out = net(images)
    folded = Output(*(x.view(2, len(labels_B), *x.shape[1:]) for x in out))
    views = Views(images, F.one_hot(labels_B, num_classes).double(), labels_B)
    parts = MDCS(classes)(folded, views, epoch)
    optimiser.zero_grad()
    parts["loss"].backward()
    optimiser.step()
    return out, parts


def sgd(net: ExpertNet, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


@pytest.mark.parametrize(("prefix", "num_classes", "grouped"), [("c10", 10, False), ("c100", 100, False), ("c100", 100, True)])
def test_golden_forward(prefix: str, num_classes: int, grouped: bool) -> None:
    net = from_published(prefix, num_classes, grouped).eval()
    images = torch.from_numpy(VECTORS["input"])
    with torch.no_grad():
        out = net(images)
        single = net.float()(images.float())
    torch.testing.assert_close(out.logits, torch.from_numpy(VECTORS[f"{prefix}/eval/logits"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(out.logits.mean(1), torch.from_numpy(VECTORS[f"{prefix}/eval/output"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(out.features, torch.from_numpy(VECTORS[f"{prefix}/eval/feat"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(single.logits, torch.from_numpy(VECTORS[f"{prefix}/eval/logits_float32"]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("prefix", "num_classes"), [("c10", 10), ("c100", 100)])
def test_golden_training_step(prefix: str, num_classes: int) -> None:
    net = from_published(prefix, num_classes).train()
    optimiser = sgd(net, 0.1)
    images, labels = torch.from_numpy(VECTORS["input"]), torch.from_numpy(VECTORS[f"{prefix}/train/target"])[:2]
    counts = torch.from_numpy(VECTORS[f"{prefix}/train/counts"]).long()
    out, parts = step(net, optimiser, images, labels, counts, int(VECTORS[f"{prefix}/train/epoch"]))
    torch.testing.assert_close(out.logits, torch.from_numpy(VECTORS[f"{prefix}/train/logits"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(parts["loss"].item(), float(VECTORS[f"{prefix}/train/loss"]), rtol=0, atol=1e-6)
    assert parts["confident_KB"].sum(1).tolist() == VECTORS[f"{prefix}/train/mask_size"].tolist()
    checked = 0
    for key in VECTORS.files:
        if not key.startswith(f"{prefix}/train/") or key.count("/") < 3:
            continue
        kind, name = key.removeprefix(f"{prefix}/train/").split("/")
        ours = published(net, name, (lambda p: p.grad) if kind == "grad" else (lambda p: p.detach()))
        torch.testing.assert_close(ours, torch.from_numpy(VECTORS[key]), rtol=0, atol=1e-6, msg=key)
        checked += 1
    assert checked == 18
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def hash_u(name: str, n: int) -> np.ndarray:
    """n numbers in [0, 1) that depend on the name only: the rule by which the golden pictures and networks were filled."""
    mask = np.uint64(0xFFFFFFFF)
    x = (np.arange(n, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) & mask
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(2246822519)) & mask
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(3266489917)) & mask
    x ^= x >> np.uint64(16)
    return x / 4294967296.0


def hash_image(name: str) -> Tensor:
    return torch.from_numpy(2 * (2 * hash_u(name, 4 * 3 * 32 * 32) - 1)).view(4, 3, 32, 32)


@pytest.mark.parametrize("grouped", [False, True])
def test_golden_trajectory_of_eight_steps(grouped: bool) -> None:
    net = from_published("c10", 10, grouped).train()
    optimiser = sgd(net, 0.05)
    counts = torch.from_numpy(VECTORS["c10/train/counts"]).long()
    for i in range(8):
        weak = hash_image(f"weak{i}")
        strong = 0.8 * weak + 0.2 * hash_image(f"strong{i}")
        labels = torch.from_numpy(np.floor(hash_u(f"target{i}", 4) ** 2 * 10)).long()
        _, parts = step(net, optimiser, torch.cat([weak, strong]), labels, counts, i + 1)
        torch.testing.assert_close(parts["loss"].item(), float(VECTORS["trajectory/loss"][i]), rtol=0, atol=1e-5)
        assert parts["confident_KB"].sum(1).tolist() == VECTORS["trajectory/mask_size"][i].tolist()
    with torch.no_grad():
        output = net.eval()(torch.from_numpy(VECTORS["input"])).logits.mean(1)
    torch.testing.assert_close(output, torch.from_numpy(VECTORS["trajectory/final_eval_output"]), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        net.backbone.bn1.running_mean, torch.from_numpy(VECTORS["trajectory/final_bn1_running_mean"]), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "width", "num_classes"),
    [("resnet32_c10", (16, 24, 48), 10), ("resnet32_c100", (16, 24, 48), 100), ("resnet32_c100_full", (16, 32, 64), 100)],
)
def test_parameters_are_the_published_ones_without_the_dead(name: str, width: tuple, num_classes: int) -> None:
    architecture = golden("architectures.json")[name]
    net = ExpertNet(ResNetCifar(3, 32, width), num_classes)
    assert sum(p.numel() for p in net.parameters()) == architecture["params_live"]
    live = {key: shape for key, shape in architecture["params"].items() if not any(dead in key for dead in DEAD)}
    ours = {key: list(p.shape) for key, p in net.named_parameters() if key != "heads.weight"}
    ours |= {f"backbone.linears.{k}.weight": list(net.heads.weight.shape[1:]) for k in range(3)}
    assert ours == live
    assert {key: list(value.shape) for key, value in net.named_buffers()} == architecture["buffers"]
    shared = sum(value.numel() for key, value in net.named_parameters() if "s." not in key)
    assert (shared, (architecture["params_live"] - shared) / 3) == (architecture["params_shared"], architecture["params_per_expert"])
    assert set(architecture["dead"]) == architecture["params"].keys() - live.keys()
    assert net.heads.scale == architecture["scale_s"]
    macs = convolution_macs(net.eval(), torch.zeros(1, 3, architecture["input_size"], architecture["input_size"]))
    assert macs + net.heads.weight.numel() == architecture["conv_and_linear_macs"]
    state = {key: torch.empty(shape, device="meta") for key, shape in (architecture["params"] | architecture["buffers"]).items()}
    assert sum(p.numel() for p in published_mdcs(state).parameters()) == architecture["params_live"]
    node = published_model(state)
    assert (node["depth"], tuple(node["width"]), node["num_experts"], node["head"]) == (32, width, 3, "cosine")


def test_initialisation_follows_the_published_statistics() -> None:
    """Means within 5 standard errors, standard deviations within 10 % (tensors of at least 1,000 numbers)."""
    torch.manual_seed(0)
    net = ExpertNet(ResNetCifar(3, 32, (16, 24, 48)), 100)
    seen = 0
    for name, (_, std) in golden("resnet32_experts.json")["c100"]["init_mean_std"].items():
        if any(dead in name for dead in DEAD) or "conv" not in name:
            continue
        weight = published(net, name)
        if weight.numel() > 1000:
            assert weight.std().item() == pytest.approx(std, rel=0.1), name
            assert abs(weight.mean().item()) < 5 * std / weight.numel() ** 0.5, name
            seen += 1
    assert seen > 30
    columns = net.heads.weight.norm(dim=1)
    torch.testing.assert_close(columns, torch.ones_like(columns))


@pytest.mark.parametrize("num_experts", [1, 2, 4])
@pytest.mark.parametrize("head", ["cosine", "linear"])
@pytest.mark.parametrize("depth", [8, 14])
def test_any_number_of_experts_depth_head_and_input_size(num_experts: int, head: str, depth: int) -> None:
    net = ExpertNet(ResNetCifar(num_experts, depth, (8, 12, 16)), 7, head)
    for size in (8, 17):
        out = net(torch.randn(2, 3, size, size))
        assert out.logits.shape == (2, num_experts, 7)
        assert out.features.shape == (2, num_experts, 16)
    out.logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_directions_are_those_of_normalize(dim: int, dtype: torch.dtype) -> None:
    """Also of nothing, and of what float16 cannot hold the squares of."""
    x = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1], x[2] = 0, 3e4 * x[2].sign()
    found, expected = x.requires_grad_(), x.detach().double().requires_grad_()
    one, other = unit(found, dim), F.normalize(expected, dim=dim)
    torch.testing.assert_close(one, other.to(dtype))
    (found_grad,), (expected_grad,) = (torch.autograd.grad(y[[0, 2]].sum(), of) for y, of in ((one, found), (other, expected)))
    torch.testing.assert_close(found_grad, expected_grad.to(dtype))


def test_cosine_logits_stay_within_the_scale_and_float32_under_autocast() -> None:
    net = ExpertNet(ResNetCifar(2, 8, (8, 8, 16)), 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(4, 3, 16, 16))
    assert out.logits.dtype == torch.float32
    assert out.logits.abs().max() <= 30.001


@pytest.mark.parametrize(
    ("arguments", "message"), [({"depth": 9}, "depth=9"), ({"width": (16, 24)}, "width"), ({"width": (16, 25, 48)}, "even")]
)
def test_impossible_shapes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ResNetCifar(**arguments)
