"""The plain way, written once, from the description of the method: what the fast paths of mdcs are compared with, in speed and in numbers.

Pictures are augmented one by one with Pillow in a DataLoader (plain_views.py); the network loops over experts in float32 and the usual
memory layout; the loss is computed expert by expert with boolean indexing; a confusion matrix is counted in a Python loop.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from plain_views import cifar


class Pictures(Dataset[tuple[Tensor, Tensor, int]]):
    """Both views of each picture (N, H, W, 3) uint8, and its label."""

    def __init__(self, images_NHW3: Tensor, labels: list[int]) -> None:
        self.pictures = [Image.fromarray(image.numpy()) for image in images_NHW3]
        self.labels = labels
        self.views = cifar()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        weak, strong = self.views(self.pictures[index])
        return weak, strong, self.labels[index]


def loader(images_NHW3: Tensor, labels: list[int], batch_size: int, num_workers: int = 0) -> DataLoader[tuple[Tensor, Tensor, int]]:
    """Shuffled batches of (weak, strong, label)."""
    return DataLoader(Pictures(images_NHW3, labels), batch_size, shuffle=True, num_workers=num_workers)


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut, ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.more = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(out + x)


def blocks(channels_in: int, channels: int, stride: int, number: int) -> nn.Sequential:
    return nn.Sequential(Block(channels_in, channels, stride), *(Block(channels, channels, 1) for _ in range(number - 1)))


class ExpertResNet(nn.Module):
    """ResNet-32 whose last two stages each expert has for itself, with a cosine classifier for each; a list of K logits (N, C)."""

    def __init__(self, num_experts: int, num_classes: int, depth: int = 32, width: tuple[int, int, int] = (16, 24, 48)) -> None:
        super().__init__()
        number = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width[0])
        self.layer1 = blocks(width[0], width[0], 1, number)
        self.layer2s = nn.ModuleList(blocks(width[0], width[1], 2, number) for _ in range(num_experts))
        self.layer3s = nn.ModuleList(blocks(width[1], width[2], 2, number) for _ in range(num_experts))
        self.linears = nn.ParameterList(torch.rand(width[2], num_classes) * 2 - 1 for _ in range(num_experts))

    def forward(self, images: Tensor) -> list[Tensor]:
        shared = self.layer1(F.relu(self.bn1(self.conv1(images))))
        logits = []
        for layer2, layer3, weight_DC in zip(self.layer2s, self.layer3s, self.linears, strict=True):
            out = layer3(layer2(shared))
            features = F.avg_pool2d(out, out.shape[-1]).flatten(1)
            logits.append(30 * F.normalize(features, dim=1) @ F.normalize(weight_DC, dim=0))
        return logits


def mdcs_loss(logits: Sequence[Tensor] | Tensor, labels_B: Tensor, counts_C: Tensor, lambdas: list[float], epoch: int) -> Tensor:
    """The MDCS loss by the published procedure: expert by expert, what nothing reads included, since its users wait for that, too.

    `logits` are K of (2B, C), the weak views, then the strong ones: a list, or (K, 2B, C), for instance the network's (2B, K, C) with its
    axes exchanged, as published.
    """
    rows, temperature = len(labels_B), 1
    labels_N = torch.cat([labels_B, labels_B])
    prior_C = counts_C.float()
    # The shift by the prior is a power and a logarithm of the same counts in every step.
    adjusted = [logits_NC + torch.log(torch.pow(prior_C, strength) + 1e-9) for logits_NC, strength in zip(logits, lambdas, strict=True)]
    views = [(adjusted_NC[:rows], adjusted_NC[rows:]) for adjusted_NC in adjusted]
    # The temperature is 1: each division is a copy.
    softened = [
        (F.softmax(weak_BC / temperature, dim=1).detach(), F.log_softmax(strong_BC / temperature, dim=1)) for weak_BC, strong_BC in views
    ]
    # The weak view's softmax again, for its answers; and that of the strong view with its answers, which nothing reads.
    answers = [[F.softmax(view_BC, dim=1).detach().max(dim=1).indices for view_BC in pair] for pair in views]
    distilled: Tensor | int = 0
    for (teacher_BC, student_BC), (weak_B, _) in zip(softened, answers, strict=True):
        # Who is right is found three times: to ask whether anybody is, which waits for the device, and to choose the rows of each view.
        if (weak_B == labels_B).sum() > 0:
            chosen = F.kl_div(student_BC[weak_B == labels_B], teacher_BC[weak_B == labels_B], reduction="batchmean")
            distilled = distilled + chosen * temperature**2
    loss = torch.as_tensor(0.6 * distilled * min(epoch / 20, 1.0))
    for adjusted_NC in adjusted:
        loss = loss + F.cross_entropy(adjusted_NC, labels_N)  # a log-softmax of its own
    return loss


def lean_mdcs_loss(logits: Sequence[Tensor] | Tensor, labels_B: Tensor, counts_C: Tensor, lambdas: list[float], epoch: int) -> Tensor:
    """`mdcs_loss` without what nothing reads or what is computed twice; still expert by expert and with boolean indexing."""
    labels_N = torch.cat([labels_B, labels_B])
    loss = torch.zeros(())
    distilled = torch.zeros(())
    for logits_NC, strength in zip(logits, lambdas, strict=True):
        adjusted_NC = logits_NC + torch.log(counts_C.float() ** strength + 1e-9)
        loss = loss + F.cross_entropy(adjusted_NC, labels_N)
        weak_BC, strong_BC = adjusted_NC.chunk(2)
        teacher_BC = F.softmax(weak_BC, dim=1).detach()
        right_B = teacher_BC.argmax(1) == labels_B
        if right_B.sum() > 0:
            student_BC = F.log_softmax(strong_BC, dim=1)
            distilled = distilled + F.kl_div(student_BC[right_B], teacher_BC[right_B], reduction="batchmean")
    return loss + 0.6 * min(epoch / 20, 1.0) * distilled


def confusion_matrix(answers: list[int], labels: list[int], num_classes: int) -> list[list[int]]:
    """Rows are true classes, columns answers."""
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for answer, label in zip(answers, labels, strict=True):
        matrix[label][answer] += 1
    return matrix
