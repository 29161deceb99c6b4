"""Residual networks for small pictures (He et al., arXiv:1512.03385, section 4.2) whose last two stages belong to the experts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdcs.errors import UserError
from mdcs.models.batch_norm import BatchNorm
from mdcs.models.grouped import Grouped
from mdcs.types import Backbone


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut, ReLU. Where the shape changes the shortcut drops every other pixel and pads with zero channels,
    half of them on each side ("option A"): it has no parameters.

    `groups` such blocks side by side are one block of grouped convolutions, whose channels are those of the blocks one after the other;
    if `shared`, all of them read the same input.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, groups: int = 1, shared: bool = False) -> None:
        super().__init__()
        wide, groups_in = channels * groups, 1 if shared else groups
        self.conv1 = nn.Conv2d(channels_in * groups_in, wide, 3, stride, 1, groups=groups_in, bias=False)
        self.bn1 = BatchNorm(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = BatchNorm(wide)
        self.stride = stride
        self.pad = (channels - channels_in) // 2
        self.groups_in, self.copies = groups_in, groups // groups_in

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or self.pad:
            # Zeros on each side of each group. Channels come last in memory, so they do here: the gradient of pixels that are dropped
            # from (N, C, H, W) comes back with channels first, which takes a CPU several times as long to add to the other.
            kept_NHWgc = x.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride].unflatten(-1, (self.groups_in, -1))
            shortcut = F.pad(kept_NHWgc, (self.pad, self.pad)).flatten(-2).permute(0, 3, 1, 2)
        if self.copies > 1:
            shortcut = torch.cat([shortcut] * self.copies, dim=1)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(shortcut), inplace=True)


def stage(channels_in: int, channels: int, stride: int, blocks: int, groups: int = 1, shared: bool = False) -> nn.Sequential:
    """`blocks` blocks, the first of which changes the shape."""
    first = BasicBlock(channels_in, channels, stride, groups, shared)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, groups) for _ in range(blocks - 1)))


class ResNetCifar(Backbone):
    """(N, 3, H, W) -> (N, K, D): stem and stage 1 shared, stages 2 and 3 once per expert, mean over the remaining pixels.

    `depth` = 6·blocks + 2 (8, 14, 20, 32, ...) counts the layers of one path; `width` gives the channels of the three stages, the last
    is D. The published MDCS networks are depth 32 with width (16, 24, 48), full width is (16, 32, 64). Convolutions start Kaiming-normal.

    `grouped` computes the stages of all experts in one pass of grouped convolutions: the same numbers, weights and files with a third of
    the operations to start, which is what a GPU spends its time on with pictures as small as these. On CPUs the loop is as fast or faster.
    """

    def __init__(self, num_experts: int = 3, depth: int = 32, width: Sequence[int] = (16, 24, 48), grouped: bool = False) -> None:
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
        self.bn1 = BatchNorm(width[0])
        self.layer1 = stage(width[0], width[0], 1, blocks)
        self.layer2s: nn.Module = nn.ModuleList(stage(width[0], width[1], 2, blocks) for _ in range(num_experts))
        self.layer3s: nn.Module = nn.ModuleList(stage(width[1], width[2], 2, blocks) for _ in range(num_experts))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.grouped = grouped
        if grouped:
            self.layer2s = Grouped(stage(width[0], width[1], 2, blocks, num_experts, shared=True), self.layer2s)
            self.layer3s = Grouped(stage(width[1], width[2], 2, blocks, num_experts), self.layer3s)

    def forward(self, images: Tensor, meta: Tensor | None = None) -> Tensor:
        shared = self.layer1(F.relu(self.bn1(self.conv1(images)), inplace=True))
        if self.grouped:
            return self.layer3s(self.layer2s(shared)).mean((2, 3)).unflatten(1, (self.num_experts, -1))
        assert isinstance(self.layer2s, nn.ModuleList) and isinstance(self.layer3s, nn.ModuleList)
        features = [layer3(layer2(shared)).mean((2, 3)) for layer2, layer3 in zip(self.layer2s, self.layer3s, strict=True)]
        return torch.stack(features, dim=1)
