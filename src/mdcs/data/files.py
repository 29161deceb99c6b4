"""Pictures that are decoded when they are asked for: what a split holds when it does not fit into memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mdcs.data.crops import Crop
from mdcs.randomness import generator


class Files:
    """The pictures of a split, as `crop` cuts squares out of them. Where a tensor (N, 3, H, W) would be indexed, this one decodes.

    `picture(position)` yields the decoded picture (H, W, 3) uint8 at a position of the source; `positions` (N,) are those of the split.
    """

    def __init__(self, picture: Callable[[int], np.ndarray], positions: np.ndarray, crop: Crop) -> None:
        self.picture = picture
        self.positions = positions
        self.crop = crop

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, size, size), as of the tensor that this stands for."""
        return len(self), 3, self.crop.size, self.crop.size

    def plain(self, index_B: Tensor) -> Tensor:
        """(B, 3, size, size) uint8: the pictures at `index` (B,) as evaluation sees them."""
        squares = [self.crop.plain(self.picture(int(self.positions[index]))) for index in index_B.tolist()]
        return torch.from_numpy(np.stack(squares)) if squares else torch.empty(self.shape[1:], dtype=torch.uint8)[None][:0]

    def random(self, index_B: Tensor, draw_B: Tensor, epoch: int, seed: int, num_views: int) -> Tensor:
        """(V, B, 3, size, size) uint8: each picture is decoded once and cropped once for each view.

        A crop is a function of (seed, epoch, draw, view).
        """
        views_VB3HW = torch.empty((num_views, len(index_B), *self.shape[1:]), dtype=torch.uint8)
        for row, (index, draw) in enumerate(zip(index_B.tolist(), draw_B.tolist(), strict=True)):
            picture_HW3 = self.picture(int(self.positions[index]))
            for view in range(num_views):
                uniform = torch.rand(self.crop.draws, generator=generator(seed, "crop", epoch, draw, view), dtype=torch.float64)
                views_VB3HW[view, row] = torch.from_numpy(self.crop.random(picture_HW3, uniform.numpy()))
        return views_VB3HW
