"""Residual networks for pictures of about 32 pixels and more (He et al., arXiv:1512.03385, section 4.1), and ResNeXt (arXiv:1611.05431),
whose last stages belong to the experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdcs.errors import UserError
from mdcs.types import Backbone

BLOCKS = {  # depth -> blocks in each of the four stages
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_FROM = 50  # shallower networks have basic blocks


def shortcut(channels_in: int, channels: int, stride: int) -> nn.Sequential | None:
    """1×1 convolution and BN where the shape changes."""
    if stride == 1 and channels_in == channels:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class Basic(nn.Module):
    """conv3×3-BN-ReLU-conv3×3-BN plus shortcut, ReLU; yields `planes` channels."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int, groups: int, width_per_group: int) -> None:
        super().__init__()
        assert (groups, width_per_group) == (1, 64)
        self.conv1 = nn.Conv2d(channels_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut(channels_in, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)).add_(beside), inplace=True)


class Bottleneck(nn.Module):
    """conv1×1-BN-ReLU-conv3×3-BN-ReLU-conv1×1-BN plus shortcut, ReLU; yields 4·planes channels. The stride sits on the 3×3 convolution.

    The 3×3 convolution has ⌊planes·width_per_group/64⌋·groups channels in `groups` groups.
    """

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int, groups: int, width_per_group: int) -> None:
        super().__init__()
        channels = planes * self.expansion
        inner = planes * width_per_group // 64 * groups
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)).add_(beside), inplace=True)


class ResNet(Backbone):
    """(N, 3, H, W) -> (N, K, D): stem, layer1 and layer2 shared, layer4 once per expert, mean over the remaining pixels.

    layer3 is once per expert, too, unless `share_layer3`. `depth` is 10, 18 or 34 (basic blocks) or 50, 101 or 152 (bottlenecks). `width`
    gives the planes of the four stages; D is the last, times 4 with bottlenecks. The published MDCS networks have (64, 128, 192, 384)
    ("reduced") on ImageNet-LT and iNaturalist and (64, 128, 256, 512), the usual width, on Places-LT. ResNeXt-50 32×4d is depth 50 with
    groups=32, width_per_group=4. Convolutions start from N(0, 2/(k²·channels out)), BN from weight 1 and bias 0.

    The published code pools 7×7 windows, which works for 193 to 224 pixels only; the mean is the same there and takes any size.
    """

    def __init__(
        self,
        num_experts: int = 3,
        depth: int = 50,
        width: Sequence[int] = (64, 128, 192, 384),
        groups: int = 1,
        width_per_group: int = 64,
        share_layer3: bool = False,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise UserError(f"model.depth={depth}: there is {', '.join(map(str, BLOCKS))}")
        if len(width) != 4 or any(planes < 1 for planes in width):
            raise UserError(f"model.width={list(width)}: give the planes of four stages, for example [64, 128, 256, 512]")
        if groups < 1 or width_per_group < 1 or any(planes * width_per_group < 64 for planes in width):
            raise UserError(
                f"model.groups={groups}, width_per_group={width_per_group}, width={list(width)} leave a stage without channels: "
                "a convolution has planes·width_per_group/64 channels in each group"
            )
        block: type[Basic] | type[Bottleneck] = Bottleneck if depth >= BOTTLENECK_FROM else Basic
        if block is Basic and (groups, width_per_group) != (1, 64):
            raise UserError(f"model.groups={groups}, width_per_group={width_per_group} need bottlenecks: give model.depth=50 or more")

        def stage(number: int) -> nn.Sequential:
            channels_in, planes = width[0] if number == 1 else width[number - 2] * block.expansion, width[number - 1]
            first = block(channels_in, planes, 1 if number == 1 else 2, groups, width_per_group)
            channels = planes * block.expansion
            rest = (block(channels, planes, 1, groups, width_per_group) for _ in range(BLOCKS[depth][number - 1] - 1))
            return nn.Sequential(first, *rest)

        self.num_experts = num_experts
        self.num_features = width[3] * block.expansion
        self.depth, self.width, self.groups, self.width_per_group = depth, tuple(width), groups, width_per_group
        self.share_layer3 = share_layer3
        self.conv1 = nn.Conv2d(3, width[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width[0])
        self.layer1 = stage(1)
        self.layer2 = stage(2)
        if share_layer3:
            self.layer3 = stage(3)
        else:
            self.layer3s = nn.ModuleList(stage(3) for _ in range(num_experts))
        self.layer4s = nn.ModuleList(stage(4) for _ in range(num_experts))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, meta: Tensor | None = None) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        shared = self.layer2(self.layer1(F.max_pool2d(x, 3, 2, 1)))
        if self.share_layer3:
            shared = self.layer3(shared)
        features = []
        for k, layer4 in enumerate(self.layer4s):
            own = shared if self.share_layer3 else self.layer3s[k](shared)
            features.append(layer4(own).mean((2, 3)))
        return torch.stack(features, dim=1)
