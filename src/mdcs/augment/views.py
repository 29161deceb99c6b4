"""From a batch of uint8 pictures to the normalised float views that losses ask for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdcs.augment.mix import Mix
from mdcs.errors import UserError
from mdcs.randomness import generator
from mdcs.types import Batch, Policy, Views


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Lightning's `-true` precisions change the default dtype in a step; pictures and random numbers must not depend on it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Augment(nn.Module):
    """Batch -> Views: each view is its policy on the stored pictures, then mean pooling, /255, (x − mean)/std.

    A picture's random numbers are its row of one table per (seed, epoch, position of the view, name of the view), so they depend on
    neither the rest of the batch, nor its order, nor the rank, nor the number of workers. So the views of batches that were loaded at once
    are made at once, when the first of them comes, and kept for the others: every operation costs the start of a kernel, be its pictures
    few or many.

    `mean`, `std`: of the three channels, pixels in [0, 1]. `num_pictures`: of the split that `batch.index` points into. `downscale`:
    side of the squares of pixels averaged into one, after the policy. The rest are the settings of `mixing`, which acts on the views of a
    whole batch and is called after this.
    """

    def __init__(
        self,
        weak: Policy,
        strong: Policy,
        mean: Sequence[float],
        std: Sequence[float],
        num_pictures: int,
        seed: int = 0,
        downscale: int = 1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        switch_probability: float = 0.5,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(f"mean={list(mean)}, std={list(std)}: expected three numbers each, std above 0; give one per colour channel")
        if num_pictures < 1:
            raise UserError(f"num_pictures={num_pictures}: expected at least 1; give the number of pictures of the training split")
        if downscale < 1:
            raise UserError(f"downscale={downscale}: expected a whole number of pixels, at least 1; set augment.downscale=1 for no pooling")
        self.policies = nn.ModuleDict({"weak": weak, "strong": strong})
        self._draws = {"weak": weak.draws, "strong": strong.draws}
        # Plain numbers: buffers would be rounded to bfloat16 together with the network's weights.
        self.mean, self.std = tuple(mean), tuple(std)
        self.num_pictures = num_pictures
        self.seed = seed
        self.downscale = downscale
        self.mixing = Mix(mixup, cutmix, mix_probability, switch_probability, label_smoothing, seed)
        self._statistics: dict[torch.device, Tensor] = {}
        self._epoch: int | None = None
        self._tables: dict[tuple[str, int, torch.device], Tensor] = {}  # of the current epoch only
        self._ahead: tuple[Batch, tuple[object, ...], tuple[Tensor, Tensor]] | None = None  # made of which pictures, with which arguments

    def forget(self) -> None:
        """Let go of what is kept for the next step: views that were made ahead, the epoch's random numbers."""
        self._ahead = None
        self._tables.clear()
        self._epoch = None

    def check(self, views: tuple[str, ...]) -> None:
        """Raise if a loss asks for a view that there is no policy for."""
        for name in views:
            if name not in self.policies:
                raise UserError(f"view {name!r}: expected one of {', '.join(self.policies)}; correct `views` of the loss")

    @torch.no_grad()
    @float32_by_default()
    def forward(
        self,
        batch: Batch,
        views: tuple[str, ...],
        num_classes: int,
        epoch: int,
        dtype: torch.dtype = torch.float32,
    ) -> Views:
        """`views` names the policy of each view, in order. images (V, B, 3, h, w) `dtype`, whose flattening to (V·B, 3, h, w) is a
        channels_last view of the same memory; targets (B, C) float32 one-hot; index and meta as given."""
        how = (views, num_classes, epoch, dtype)
        if (part := batch.part) is None:
            images_SVB3HW, targets_SBC = self._made(batch, 1, *how)
            return Views(images_SVB3HW[0], targets_SBC[0], batch.index, batch.meta)
        if self._ahead is None or self._ahead[0] is not part.whole or self._ahead[1] != how:
            self._ahead = None  # so that its memory can be used again
            self._ahead = part.whole, how, self._made(part.whole, len(part.whole.index) // len(batch.index), *how)
        images_SVB3HW, targets_SBC = self._ahead[2]
        images_VB3HW = images_SVB3HW[part.number]
        if self.mixing.mixes:  # in place, and SAM asks for the same views twice
            images_VB3HW = images_VB3HW.clone()
        return Views(images_VB3HW, targets_SBC[part.number], batch.index, batch.meta)

    def _made(
        self, batch: Batch, steps: int, views: tuple[str, ...], num_classes: int, epoch: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """(S, V, B, 3, h, w) and (S, B, C): images and targets of `forward`, of `steps` batches that are one after the other in `batch`."""
        stored_VB3HW = batch.images
        assert len(stored_VB3HW) in (1, len(views)), f"{len(stored_VB3HW)} stored pictures for {len(views)} views"
        count, (height, width) = stored_VB3HW.shape[1], (side // self.downscale for side in stored_VB3HW.shape[3:])
        images_N3HW = self._empty(len(views) * count, height, width, dtype, stored_VB3HW.device)
        images_SVB3HW = images_N3HW.unflatten(0, (steps, len(views), count // steps))
        for v, name in enumerate(views):
            stored_B3HW = stored_VB3HW[v if len(stored_VB3HW) > 1 else 0]
            uniform_BR = self._table(name, v, epoch, stored_B3HW.device)[batch.index if batch.draw is None else batch.draw]
            augmented_B3HW = self.policies[name](stored_B3HW, uniform_BR)
            images_SVB3HW[:, v].copy_(self._normalise(augmented_B3HW).unflatten(0, (steps, count // steps)))
        # F.one_hot would read the largest label back first
        targets_BC = (batch.labels[:, None] == torch.arange(num_classes, device=batch.labels.device)).float()
        return images_SVB3HW, targets_BC.unflatten(0, (steps, count // steps))

    @torch.no_grad()
    @float32_by_default()
    def plain(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The pictures without augmentation, for evaluation: (N, 3, H, W) uint8 -> (N, 3, h, w) `dtype`, channels_last."""
        normal_N3HW = self._normalise(images)
        height, width = normal_N3HW.shape[2:]
        return self._empty(len(images), height, width, dtype, images.device).copy_(normal_N3HW)

    def _table(self, name: str, position: int, epoch: int, device: torch.device) -> Tensor:
        """(num_pictures, R) uniform numbers in [0, 1): drawn on the CPU, so that every device sees the same."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._tables.clear()
        place = (name, position, device)
        if place not in self._tables:
            key = generator(self.seed, f"augment/{name}", epoch, position)
            self._tables[place] = torch.rand(self.num_pictures, self._draws[name], generator=key).to(device)
        return self._tables[place]

    def _normalise(self, images_B3HW: Tensor) -> Tensor:
        device = images_B3HW.device
        if device not in self._statistics:  # made once: each copy to a device waits for it
            self._statistics[device] = torch.tensor([self.mean, self.std], device=device).view(2, 3, 1, 1)
        mean_311, std_311 = self._statistics[device]
        pixels = images_B3HW.float()
        if self.downscale > 1:
            pixels = F.avg_pool2d(pixels, self.downscale)
        return pixels.div_(255).sub_(mean_311).div_(std_311)

    @staticmethod
    def _empty(rows: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        shape = (rows, 3, height, width)
        return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
