"""Residual networks for small pictures (He et al., arXiv:1512.03385, section 4.2) whose last two stages belong to the experts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdcs.errors import UserError
from mdcs.types import Backbone


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut, ReLU. Where the shape changes the shortcut drops every other pixel and pads with zero channels,
    half of them on each side ("option A"): it has no parameters.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.pad = (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or self.pad:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(shortcut), inplace=True)


def stage(channels_in: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
    """`blocks` blocks, the first of which changes the shape."""
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


class ResNetCifar(Backbone):
    """(N, 3, H, W) -> (N, K, D): stem and stage 1 shared, stages 2 and 3 once per expert, mean over the remaining pixels.

    `depth` = 6·blocks + 2 (8, 14, 20, 32, ...) counts the layers of one path; `width` gives the channels of the three stages, the last
    is D. The published MDCS networks are depth 32 with width (16, 24, 48), full width is (16, 32, 64). Convolutions start Kaiming-normal.
    """

    def __init__(self, num_experts: int = 3, depth: int = 32, width: Sequence[int] = (16, 24, 48)) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"model.depth={depth}: a CIFAR ResNet has 6·blocks + 2 layers, give 8, 14, 20, 26, 32, 44, 56 or 110")
        if len(width) != 3 or any(
            low < 1 or high < low or (high - low) % 2 for low, high in zip(width, [*width[1:], width[-1]], strict=True)
        ):
            raise UserError(
                f"model.width={list(width)}: give three channel counts, each at least the one before and larger by an even number"
            )
        blocks = (depth - 2) // 6
        self.num_experts = num_experts
        self.num_features = width[2]
        self.conv1 = nn.Conv2d(3, width[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width[0])
        self.layer1 = stage(width[0], width[0], 1, blocks)
        self.layer2s = nn.ModuleList(stage(width[0], width[1], 2, blocks) for _ in range(num_experts))
        self.layer3s = nn.ModuleList(stage(width[1], width[2], 2, blocks) for _ in range(num_experts))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor, meta: Tensor | None = None) -> Tensor:
        shared = self.layer1(F.relu(self.bn1(self.conv1(images)), inplace=True))
        features = [layer3(layer2(shared)).mean((2, 3)) for layer2, layer3 in zip(self.layer2s, self.layer3s, strict=True)]
        return torch.stack(features, dim=1)
