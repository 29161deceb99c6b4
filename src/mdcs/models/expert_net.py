"""A backbone that grows K feature vectors per picture, and a classifier for each."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdcs.types import Backbone, Output


def unit(x: Tensor, dim: int) -> Tensor:
    """x / ‖x‖ along `dim`, 0 for 0; as F.normalize, which is slow on a CPU where `dim` is not the last. Sums are of float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * wide.square().sum(dim, keepdim=True).clamp(min=1e-24).rsqrt()).to(x.dtype)


class Heads(nn.Module):
    """K classifiers, (N, K, D) -> (N, K, C), computed outside autocast: bfloat16 would round logits near 30 in steps of 0.125.

    cosine: z = s · f/‖f‖ · W/‖W‖ with fixed s = `scale`, no bias, columns of W from U(−1, 1) and normalised.
    linear: z = f W + b, W and b from U(−1/√D, 1/√D).
    """

    def __init__(
        self, num_experts: int, num_features: int, num_classes: int, kind: Literal["cosine", "linear"] = "cosine", scale: float = 30.0
    ) -> None:
        super().__init__()
        self.scale = scale
        bound = 1 / math.sqrt(num_features)
        weight_KDC = torch.empty(num_experts, num_features, num_classes)
        if kind == "cosine":
            self.weight = nn.Parameter(F.normalize(weight_KDC.uniform_(-1, 1), dim=1))
            self.bias = None
        else:
            self.weight = nn.Parameter(weight_KDC.uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.empty(num_experts, num_classes).uniform_(-bound, bound))

    def forward(self, features_NKD: Tensor) -> Tensor:
        with torch.autocast(features_NKD.device.type, enabled=False):
            features_NKD = features_NKD.to(self.weight.dtype)
            if self.bias is not None:
                return torch.einsum("nkd,kdc->nkc", features_NKD, self.weight) + self.bias
            return torch.einsum("nkd,kdc->nkc", self.scale * unit(features_NKD, -1), unit(self.weight, 1))


class ExpertNet(nn.Module):
    """images (N, 3, H, W) -> Output(logits (N, K, C), features (N, K, D)). `meta` (N, M) is for backbones that read it."""

    def __init__(self, backbone: Backbone, num_classes: int, head: Literal["cosine", "linear"] = "cosine") -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = Heads(backbone.num_experts, backbone.num_features, num_classes, head)
        self.num_experts = backbone.num_experts

    def forward(self, images: Tensor, meta: Tensor | None = None) -> Output:
        features_NKD = self.backbone(images, meta)
        return Output(self.heads(features_NKD), features_NKD)


def parameter_groups(net: ExpertNet, lr: float, backbone_lr: float | None = None) -> list[dict[str, Any]]:
    """Groups for an optimiser: the classifiers learn with `lr`, the backbone with `backbone_lr` (None: the same); frozen weights are out.

    The published Places-LT run has 0.01 for the classifiers and 0.001 for the rest of a pretrained network.
    """
    heads, rest = ([weight for weight in part.parameters() if weight.requires_grad] for part in (net.heads, net.backbone))
    groups = [{"params": heads, "lr": lr}, {"params": rest, "lr": lr if backbone_lr is None else backbone_lr}]
    return [group for group in groups if group["params"]]
