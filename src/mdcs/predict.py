"""Network and split to stored predictions, on one device or several."""

from pathlib import Path

import numpy as np
import torch

from mdcs.build import Run
from mdcs.evaluation.predictions import merge_shards, stored, write_shard


@torch.no_grad()
def predict_split(run: Run, split: str, folder: Path, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1) -> None:
    """Write the logits of every picture of `split` (train, val or test) to `folder`: each rank its share, rank 0 the whole.

    In the weights' own precision, without autocast, so that the result does not depend on how the run was trained.
    """
    loader = run.data().eval_loader(split, rank, world_size)
    net, plain = run.net.to(device).eval(), run.module.augment.to(device).plain
    dtype = next(net.parameters()).dtype
    logits, index = [], []
    for batch in loader:
        meta = None if batch.meta is None else batch.meta.to(device)
        logits.append(stored(net(plain(batch.images[0].to(device), dtype), meta).logits))
        index.append(batch.index.numpy())
    write_shard(folder, rank, np.concatenate(logits), np.concatenate(index))
    barrier(world_size)
    if rank == 0:
        pictures = getattr(run.splits, split)
        merge_shards(folder, world_size, pictures.labels.numpy(), list(pictures.paths))
    barrier(world_size)


def barrier(world_size: int) -> None:
    """Wait for the other ranks, if there are any."""
    if world_size > 1:
        torch.distributed.barrier()
