"""Weights that others trained: into a backbone of ours before training (`model.pretrained`), and whole published MDCS networks."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdcs import config
from mdcs.errors import UserError
from mdcs.models.expert_net import ExpertNet
from mdcs.models.inert_pickle import read_file, read_state_dict
from mdcs.models.resnet import BLOCKS, BOTTLENECK_FROM, ResNet
from mdcs.models.resnet_cifar import ResNetCifar
from mdcs.models.timm_backbone import Timm, timm_weights
from mdcs.types import Backbone

WRAPPINGS = ("module.", "net.", "backbone.")  # DataParallel, our checkpoints, published and our ExpertNet
CLASSIFIERS = ("fc.", "head.", "heads.", "head_dist.", "classifier.", "linears.")
DEAD = ("linear_head.", "linear_few.", "mlp.")  # in the published CIFAR network, but never in its forward
UNUSED_BY_MANY = "num_batches_tracked"  # counts the steps of batch-norm; nothing reads it at momentum 0.1


def load_pretrained(backbone: Backbone, source: str | Path | bool) -> list[str]:
    """Start `backbone` from trained weights; returns what was and what was not taken, for the log.

    `source`: true or "imagenet" for timm's ImageNet weights of the network (fetched and kept by timm), or the path of a file: .pth, .pt
    or .safetensors with torchvision's or timm's names, a checkpoint or run folder of ours. Shared parts are taken by equal name, expert k's
    `layer3s.k.*` and `layer4s.k.*` from `layer3.*` and `layer4.*`, with the statistics of batch-norm: all experts start equal, as in the
    published code for Places-LT. Classifiers stay as they were initialised. UserError if a tensor has another shape or none fits.
    """
    if source is True or source == "imagenet":
        name = imagenet_name(backbone)
        origin, given = f"timm's {name}", timm_weights(name, backbone.settings if isinstance(backbone, Timm) else {})
    else:
        origin, given = str(source), read_weights(Path(str(source)).expanduser())
    taken, missing = {}, []
    for name, tensor in backbone.state_dict().items():
        found = next((candidate for candidate in (name, foreign_name(backbone, name)) if candidate in given), None)
        if found is None:
            missing += [name] * (not name.endswith(UNUSED_BY_MANY))
        elif given[found].shape != tensor.shape:
            raise UserError(
                f"model.pretrained: {found} is {tuple(given[found].shape)} in {origin}, but {tuple(tensor.shape)} in this network"
                f"{remedy(backbone)}"
            )
        else:
            taken[name] = found
    if not taken:
        raise UserError(f"model.pretrained: no tensor of {origin} has a name of this network; it begins with {', '.join(list(given)[:3])}")
    backbone.load_state_dict({name: given[found] for name, found in taken.items()}, strict=False)
    used = set(taken.values())
    over = [name for name in given if name not in used and not name.startswith(CLASSIFIERS) and not name.endswith(UNUSED_BY_MANY)]
    notes = [f"{len(taken)} tensors start from {origin}, the classifiers anew"]
    notes += [f"not in {origin}, and started anew: {enumerated(missing)}"] * bool(missing)
    notes += [f"in {origin}, but without a place here: {enumerated(over)}"] * bool(over)
    return notes


def enumerated(names: Sequence[str]) -> str:
    """Some of the names, and how many there are."""
    return ", ".join(names[:3]) + (f", ... ({len(names)} tensors)" if len(names) > 3 else "")


def foreign_name(backbone: Backbone, name: str) -> str:
    """What the tensor `name` of the backbone is called where there is one network instead of experts."""
    if isinstance(backbone, Timm):
        return backbone.timm_name(name)
    return re.sub(r"^(layer\d)s\.\d+\.", r"\1.", name)


def remedy(backbone: Backbone) -> str:
    """The end of a message about tensors of another shape."""
    if isinstance(backbone, Timm):
        return "; set model.name and model.image_size as they were there"
    return "; reduced experts cannot take weights of the usual width: set model.width=[64,128,256,512]" * isinstance(backbone, ResNet)


def imagenet_name(backbone: Backbone) -> str:
    """The network of timm whose weights fit."""
    if isinstance(backbone, Timm):
        return backbone.name
    names = {(depth, 1, 64): f"resnet{depth}" for depth in BLOCKS if depth != 10} | {(50, 32, 4): "resnext50_32x4d"}
    kind = isinstance(backbone, ResNet) and (backbone.depth, backbone.groups, backbone.width_per_group)
    if not isinstance(backbone, ResNet) or kind not in names:
        raise UserError("model.pretrained: there are no ImageNet weights of this network; give the path of a file, or choose model=timm")
    if backbone.width != (64, 128, 256, 512):
        raise UserError(f"model.pretrained: {names[kind]} has the usual width{remedy(backbone)}")
    return names[kind]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes that wrappers add. `path` is a file, or a run folder, whose checkpoint predicts."""
    averaged = False
    if path.is_dir():
        if not (path / "config.yaml").exists():
            raise UserError(f"model.pretrained={path}: a folder, but no run: it has no config.yaml; give a file or a run folder")
        run = config.read_yaml(path / "config.yaml")
        averaged = bool(run.get("optim", {}).get("ema_evaluate"))
        path = path / "checkpoints" / f"{run['checkpoint']}.ckpt"
    if not path.is_file():
        raise UserError(f"model.pretrained={path}: there is no such file; give true, a file of weights or a run folder")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as a safetensors file ({str(error).splitlines()[0]})") from error
    else:
        state = read_state_dict(path)
    if averaged:
        state = {name.removeprefix("ema."): tensor for name, tensor in state.items() if name.startswith("ema.")}
    return unwrapped(state)


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes `module.`, `net.`, `backbone.`; of a checkpoint of ours, the network only."""
    if any(name.startswith("net.backbone.") for name in state):
        state = {name: tensor for name, tensor in state.items() if name.startswith("net.")}
    plain = dict(state)
    for wrapping in WRAPPINGS:
        plain = {name.removeprefix(wrapping): tensor for name, tensor in plain.items()}
    return plain


# ---------------------------------------------------------------------------------------------------------------- published


def read_published(path: str | Path) -> tuple[dict[str, Tensor], int | None]:
    """The network in a published MDCS checkpoint, by its published names, and its epoch if the file says so.

    Such files pickle objects too: nothing of them is executed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"{path}: {what}; give a published checkpoint, for example checkpoint-epoch400.pth")
    state, content = read_file(path)
    epoch = content.get("epoch")
    return state, epoch if type(epoch) is int and epoch > 0 else None


def published_model(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `model` node of a configuration that describes a published network, from its names and shapes. UserError if it is none.

    Known are the ResNet-32 experts of the CIFAR sets and the ResNet and ResNeXt experts of the others, with any number of experts, classes
    and channels, shared or own layer3, cosine or linear classifiers.
    """
    plain = unwrapped(state)

    def channels(name: str, axis: int = 0) -> int:
        return plain[f"{name}.weight"].shape[axis]

    def count(pattern: str) -> int:
        return len({match[1] for match in (re.match(pattern, name) for name in plain) if match})

    try:
        node: dict[str, Any] = {
            "_target_": "mdcs.models.resnet_cifar.ResNetCifar",
            "num_experts": count(r"linears\.(\d+)\."),
            "head": "linear" if "linears.0.bias" in plain else "cosine",
        }
        if "layer4s.0.0.conv1.weight" not in plain:
            width = [channels("conv1"), channels("layer2s.0.0.conv1"), channels("layer3s.0.0.conv1")]
            return node | {"depth": 6 * count(r"layer1\.(\d+)\.") + 2, "width": width}

        third = "layer3" if "layer3.0.conv1.weight" in plain else "layer3s.0"
        stages = ["layer1", "layer2", third, "layer4s.0"]
        blocks = tuple(count(rf"{re.escape(stage)}\.(\d+)\.") for stage in stages)
        bottlenecks = "layer1.0.conv3.weight" in plain
        depths = [depth for depth, known in BLOCKS.items() if known == blocks and (depth >= BOTTLENECK_FROM) == bottlenecks]
        if not depths:
            raise UserError(f"the weights are of no published network: stages of {blocks} blocks")
        width = [channels(f"{stage}.0.conv3") // 4 if bottlenecks else channels(f"{stage}.0.conv1") for stage in stages]
        inner = channels("layer1.0.conv2")
        groups = inner // channels("layer1.0.conv2", 1)
        return node | {
            "_target_": "mdcs.models.resnet.ResNet",
            "depth": depths[0],
            "width": width,
            "groups": groups,
            "width_per_group": inner * 64 // (width[0] * groups),
            "share_layer3": third == "layer3",
        }
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"the weights are of no published MDCS network: {error} is not among their names") from error


def published_mdcs(state: Mapping[str, Tensor]) -> ExpertNet:
    """The network whose published weights are `state`, in float64 if they are, else in float32. UserError if it is none of those known."""
    node = published_model(state)
    plain = {name: tensor for name, tensor in unwrapped(state).items() if not name.startswith(DEAD)}
    arguments = {name: value for name, value in node.items() if name not in ("_target_", "head")}
    if node["num_experts"] < 1:
        raise UserError("the weights are of no published MDCS network: there is no classifier (linears.0.weight) among them")
    heads = [plain.pop(f"linears.{k}.weight", None) for k in range(node["num_experts"])]
    biases = [plain.pop(f"linears.{k}.bias", None) for k in range(node["num_experts"])]
    linear = node["head"] == "linear"
    shapes = {None if head is None or head.ndim != 2 else head.shape for head in heads}
    if len(shapes) > 1 or None in shapes or any((bias is None) == linear for bias in biases):
        raise UserError(f"the weights are of no published MDCS network: the classifiers of {len(heads)} experts differ in kind")
    dtype = torch.float64 if plain["conv1.weight"].dtype == torch.float64 else torch.float32
    # A linear classifier is stored as (C, D), a cosine classifier as (D, C), like ours.
    weight_KDC = torch.stack([head.T if linear else head for head in heads if head is not None])
    with torch.device("meta"):
        backbone: Backbone = ResNet(**arguments) if node["_target_"].endswith(".ResNet") else ResNetCifar(**arguments)
        net = ExpertNet(backbone, weight_KDC.shape[2], node["head"])
    ours = {f"backbone.{name}": tensor for name, tensor in plain.items()} | {"heads.weight": weight_KDC}
    if linear:
        ours["heads.bias"] = torch.stack([bias for bias in biases if bias is not None])
    for name, wanted in net.state_dict().items():
        if name not in ours and name.endswith(UNUSED_BY_MANY):
            ours[name] = torch.zeros((), dtype=torch.int64)
        if name not in ours or ours[name].shape != wanted.shape:
            raise UserError(
                f"the weights are of no published MDCS network: {name.removeprefix('backbone.')} should be {tuple(wanted.shape)}"
            )
    unknown = ours.keys() - net.state_dict().keys()
    if unknown:
        raise UserError(f"the weights are of no published MDCS network: {min(unknown).removeprefix('backbone.')} has no place in one")
    ours = {name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True) for name, tensor in ours.items()}
    net.load_state_dict(ours, assign=True)
    return net
