"""Which pictures a long-tailed subset holds: counts per class, the pictures drawn, the pictures set aside for validation.

Pure functions of labels and seeds; nothing here touches NumPy's global generator (the published code re-seeds it).
"""

from typing import Literal

import numpy as np
import torch

from mdcs.errors import UserError
from mdcs.randomness import generator

Profile = Literal["exp", "step"]


def long_tailed_counts(available: float, num_classes: int, imbalance_factor: float, profile: Profile) -> list[int]:
    """n_c, the number of training pictures of class c = 0 .. C−1, of which class 0 has `available`.

    With ρ = 1/`imbalance_factor`, exp: n_c = int(available · ρ^(c/(C−1))); step: the first C // 2 classes have int(available), the others
    int(available · ρ). `int` truncates, and may so give 0. Source: imbalance_cifar.py in the published code of MDCS (arXiv:2308.09922).
    """
    if not 1 <= imbalance_factor < float("inf"):  # also refuses NaN
        raise UserError(f"data.imbalance_factor={imbalance_factor}: expected a number >= 1, largest class over smallest")
    rho = 1 / imbalance_factor
    if profile == "exp":
        last = max(num_classes - 1.0, 1.0)  # a single class has c = 0 only
        return [int(available * rho ** (c / last)) for c in range(num_classes)]
    if profile == "step":
        large = num_classes // 2
        return [int(available)] * large + [int(available * rho)] * (num_classes - large)
    raise UserError(f"data.profile={profile}: expected exp or step")


def long_tailed_subset(labels: np.ndarray, counts: list[int], seed: int) -> np.ndarray:
    """Positions (Σ n_c,) int64 of the chosen pictures, class after class.

    For each class in ascending order its positions are shuffled by one `RandomState(seed)` and the first `counts[c]` are taken: the indices
    of the published code, whose seed is 0. `labels` (N,) int64; pictures with a negative label belong to no class.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"data.subset_seed={seed}: expected a whole number from 0 to 4294967295")
    random = np.random.RandomState(seed)
    chosen = []
    by_class = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[by_class], np.arange(len(counts) + 1))
    for label, count in enumerate(counts):
        positions = by_class[ends[label] : ends[label + 1]]
        random.shuffle(positions)
        if count > len(positions):
            raise UserError(f"class number {label}: {count} pictures wanted of {len(positions)}")
        chosen.append(positions[:count])
    return np.concatenate(chosen).astype(np.int64)


def carve_validation(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in `labels` (N,) for (training, validation), both ascending; `fraction` of each class, rounded, goes to validation.

    A class of two or more pictures gives at least one and keeps at least one; a class of one keeps it; `fraction` 0 takes nothing.
    Which pictures a class gives depends on their number and `seed` only, not on the other classes.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"data.val_fraction={fraction}: expected a number from 0 up to, but not including, 1")
    is_val = np.zeros(len(labels), dtype=bool)
    by_class = np.argsort(labels, kind="stable")
    for positions in np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1) if fraction > 0 and len(labels) else ():
        label = labels[positions[0]]
        count = min(max(int(len(positions) * fraction + 0.5), 1), len(positions) - 1)
        order = torch.randperm(len(positions), generator=generator(seed, "validation", int(label))).numpy()
        is_val[positions[order[:count]]] = True
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)
