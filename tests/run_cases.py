"""Run folders without training, for what reads them: predictions of experts who favour frequent, all and rare classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mdcs.evaluation.predictions import Predictions, classes_to_json, merge_shards, stored, write_shard
from mdcs.evaluation.scores import scores
from mdcs.types import Classes

CONFIG: dict[str, Any] = {
    "seed": 0,
    "checkpoint": "last",
    "model": {"_target_": "mdcs.models.resnet_cifar.ResNetCifar", "num_experts": 3, "head": "cosine"},
    "loss": {"_target_": "mdcs.losses.mdcs.MDCS", "alpha": 0.6},
    "trainer": {"max_epochs": 4, "precision": "32-true"},
    "data": {"_target_": "mdcs.data.arrays.Digits", "subset_seed": 0, "batch_size": 32, "num_workers": 0},
}
FACTS = {
    "parameters": 126672,
    "macs_per_picture": 1111968,
    "views": 2,
    "train_pictures": 305,
    "seed": 0,
    "git_commit": "0123456789abcdef",
    "threads": 1,
    "images_per_second": 1500.0,
    "peak_memory_mib": 900,
    "device": "cpu",
    "precision": "32-true",
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "epochs": 4,
    "wall_seconds": 1.5,
    "checkpoint_epoch": 4,
}


def long_tailed(names: Sequence[str]) -> Classes:
    """From 500 training pictures to 5."""
    counts = np.geomspace(500, 5, len(names)).astype(np.int64)
    return Classes(tuple(names), torch.from_numpy(counts))


def predictions_of(classes: Classes, num_experts: int = 3, per_class: int = 12, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Logits (N, K, C) and labels; expert 1 favours frequent classes, the last one rare ones. The pictures are the same for every seed."""
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed + 1)
    labels_N = torch.arange(len(classes) * per_class) % len(classes)
    logits_NC = 1.2 * torch.randn(len(labels_N), len(classes), generator=shared)
    logits_NC[torch.arange(len(labels_N)), labels_N] += 3
    favour_K = torch.linspace(1, -1, num_experts) if num_experts > 1 else torch.zeros(1)
    tilt_KC = favour_K[:, None] * classes.counts.double().log().float()
    noise_NKC = torch.randn(len(labels_N), num_experts, len(classes), generator=own)
    return logits_NC[:, None] + noise_NKC + tilt_KC, labels_N.numpy()


def make_run(
    folder: Path, names: Sequence[str] = tuple("abcdefghij"), num_experts: int = 3, per_class: int = 12, seed: int = 0, **config: Any
) -> Path:
    """A run folder as `mdcs train` leaves it, without checkpoints."""
    classes = long_tailed(names)
    logits_NKC, labels = predictions_of(classes, num_experts, per_class, seed)
    folder.mkdir(parents=True)
    place = folder / "predictions" / "test"
    write_shard(place, 0, stored(logits_NKC), np.arange(len(labels)))
    merge_shards(place, 1, labels, [f"pictures/{i}.png" for i in range(len(labels))])
    cfg = CONFIG | {"seed": seed, "model": CONFIG["model"] | {"num_experts": num_experts}} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg, allow_unicode=True), encoding="utf-8")
    (folder / "classes.json").write_text(classes_to_json(classes, tuple(classes.counts.tolist())), encoding="utf-8")
    content = {"split": "test", "checkpoint": "last", **scores(Predictions.read(place), classes), **FACTS, "seed": seed}
    (folder / "scores.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    columns = ["epoch", "lr", "train/loss", "train/diversity", "train/acc", "train/confident_many", "train/confident_few", "val/acc"]
    rows = [[e, 0.1, 5 / e, 3 / e, 0.2 * e, 0.25 * e, "" if e == 1 else 0.1 * e, ""] for e in range(1, 5)]
    lines = [",".join(map(str, row)) for row in [columns, *rows]]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
