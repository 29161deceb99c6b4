"""Sums kept on the device while an epoch runs, and reduced over ranks when it ends: no value is read back in a step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mdcs.types import Classes

DIVERSITY = ("disagreement", "recall_sd", "oracle_gap")


class EpochMeans(Metric):
    """Means over the pictures of a training epoch: the loss and its parts, accuracy, and the confident share by expert and shot group.

    Accuracy is that of the ensemble over all views of the loss, so it is lower where the loss reads strong views.
    """

    full_state_update = False
    sums: Tensor
    of_classes: Tensor

    def __init__(self, classes: Classes, num_experts: int) -> None:
        super().__init__()
        self.classes = classes
        self.names: list[str] = []
        self.distils = False
        self.add_state("sums", torch.zeros(0), dist_reduce_fx="sum")  # (len(names))
        # The confident pictures of each expert, and all. Whole numbers, which trainer.precision=bf16-true leaves as they are.
        self.add_state("of_classes", torch.zeros(num_experts + 1, len(classes), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, parts: dict[str, Tensor], logits_VBKC: Tensor, labels_B: Tensor) -> None:
        scalars = {f"train/{name}": value.detach().float() for name, value in parts.items() if value.ndim == 0}
        hits_VB = logits_VBKC.mean(2).argmax(-1) == labels_B
        values = torch.stack([*scalars.values(), hits_VB.mean(dtype=torch.float)])
        if not self.sums.numel():
            self.names, self.distils, self.sums = [*scalars, "train/acc"], "confident_KB" in parts, torch.zeros_like(values)
        self.sums.add_(values, alpha=len(labels_B))
        marked_JB = torch.ones_like(labels_B, dtype=torch.bool)[None]
        if self.distils:
            marked_JB = torch.cat([parts["confident_KB"], marked_JB])
        self.of_classes[-len(marked_JB) :].index_add_(1, labels_B, marked_JB.long())

    def local(self) -> dict[str, float]:
        """The means over this rank's pictures so far, and their number; a group without pictures is left out."""
        if not self.sums.numel():
            return {}
        *confident, support_C = self.of_classes.cpu().double()
        pictures = support_C.sum().item()
        means = {name: value / pictures for name, value in zip(self.names, self.sums.tolist(), strict=True)}
        if self.distils:
            means |= {f"train/confident_{k}": chosen_C.sum().item() / pictures for k, chosen_C in enumerate(confident, 1)}
            share_C = torch.stack(confident).mean(0)
            for name, group_C in self.classes.groups.items():
                if of_group := support_C[group_C].sum().item():
                    means[f"train/confident_{name}"] = share_C[group_C].sum().item() / of_group
        return means | {"pictures": pictures}

    def compute(self) -> dict[str, float]:
        """The means over all ranks."""
        return self.local()


class GroupAccuracy(Metric):
    """Accuracy of the ensemble and of each expert, and how the experts differ: overall, and by shot group as means over its classes.

    Counts for each class are all that is kept, so ranks are added up. `disagreement`, `recall_sd` and `oracle_gap` are those of
    `mdcs.analysis.diversity.DiversitySums`, which computes them, and costlier ones, from stored predictions.
    """

    full_state_update = False
    hits: Tensor
    apart: Tensor
    support: Tensor
    empty_C: Tensor

    def __init__(self, classes: Classes, num_experts: int) -> None:
        super().__init__()
        self.classes = classes
        self.num_experts = num_experts
        self.register_buffer("empty_C", classes.counts == 0, persistent=False)  # on the device: a copy to it would wait
        # Float32 counts are exact up to 16 million pictures of a class.
        self.add_state("hits", torch.zeros(num_experts + 2, len(classes)), dist_reduce_fx="sum")  # ensemble, experts, any expert
        self.add_state("apart", torch.zeros(len(classes)), dist_reduce_fx="sum")  # pairs of experts that answer differently
        self.add_state("support", torch.zeros(len(classes)), dist_reduce_fx="sum")

    def update(self, logits_NKC: Tensor, labels_N: Tensor) -> None:
        """Logits (N, K, C), labels (N,) int64. A class without training pictures cannot be the answer."""
        logits_NKC = logits_NKC.masked_fill(self.empty_C, -torch.inf)
        answers_NJ = torch.cat([logits_NKC.mean(1, keepdim=True), logits_NKC], dim=1).argmax(-1)
        hits_NJ = answers_NJ == labels_N[:, None]
        hits_NJ = torch.cat([hits_NJ, hits_NJ[:, 1:].any(1, keepdim=True)], dim=1)
        apart_NKK = answers_NJ[:, 1:, None] != answers_NJ[:, None, 1:]
        self.hits.index_add_(1, labels_N, hits_NJ.T.float())
        self.apart.index_add_(0, labels_N, apart_NKK.sum((1, 2)) / 2)
        self.support.index_add_(0, labels_N, torch.ones_like(labels_N, dtype=torch.float))

    def compute(self) -> dict[str, float]:
        """val/acc, val/acc_few ..., val/acc_expert_1 ...; of several experts val/disagreement, val/disagreement_few ... A group without
        pictures is left out."""
        hits_JC, apart_C, support_C = self.hits.cpu().double(), self.apart.cpu().double(), self.support.cpu().double()
        seen_C, pairs = support_C > 0, self.num_experts * (self.num_experts - 1) // 2
        recall_JC = hits_JC / support_C.clamp(min=1)
        overall_J = hits_JC.sum(1) / support_C.sum()
        values = {"val/acc": overall_J[0].item()}
        values |= {f"val/acc_expert_{k}": overall_J[k].item() for k in range(1, self.num_experts + 1)}
        for name, group_C in ({"": torch.ones_like(seen_C)} | self.classes.groups).items():
            of_C, suffix = group_C & seen_C, f"_{name}" if name else ""
            if not of_C.any():
                continue
            accuracy_J = recall_JC[:, of_C].mean(1) if name else overall_J
            values[f"val/acc{suffix}"] = accuracy_J[0].item()
            if pairs:
                values[f"val/disagreement{suffix}"] = (apart_C[of_C].sum() / support_C[of_C].sum() / pairs).item()
                values[f"val/recall_sd{suffix}"] = recall_JC[1:-1, of_C].std(0, correction=0).mean().item()
                values[f"val/oracle_gap{suffix}"] = (accuracy_J[-1] - accuracy_J[0]).item()
        return values


def columns(num_experts: int) -> list[str]:
    """The header of metrics.csv; what a run does not have stays empty."""
    experts, groups = range(1, num_experts + 1), ("many", "medium", "few")
    of = ("", *(f"_{group}" for group in groups))
    return [
        *("epoch", "lr", "train/loss", "train/diversity", "train/consistency", "train/distill_weight"),
        *(f"train/confident_{name}" for name in (*experts, *groups)),
        *("train/acc", "val/acc"),
        *(f"val/acc_{group}" for group in groups),
        *(f"val/acc_expert_{k}" for k in experts),
        *(f"val/{name}{suffix}" for name in DIVERSITY for suffix in of if num_experts > 1),
        "images_per_second",
    ]


def reset_and_read(metric: Metric) -> dict[str, Any]:
    """The metric's values over all ranks, and a fresh start."""
    values: dict[str, Any] = metric.compute()
    metric.reset()
    return values


def in_words(row: Mapping[str, float]) -> str:
    """loss 3.21 (diversity 2.9, consistency 0.51), train accuracy 91.2 %, validation accuracy 80.1 %."""
    parts = [f"{name} {row[f'train/{name}']:.3g}" for name in ("diversity", "consistency") if f"train/{name}" in row]
    text = f"loss {row.get('train/loss', float('nan')):.3f}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
    for key, name in (("train/acc", "train"), ("val/acc", "validation")):
        if key in row:
            text += f", {name} accuracy {100 * row[key]:.1f} %"
    return text
