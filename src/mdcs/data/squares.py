"""Pictures from anywhere as the evaluation of a run sees its own: the short side resized, the central square cut out."""

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mdcs.data.crops import Crop
from mdcs.data.decode import decode, rgb
from mdcs.data.folder import SMALL
from mdcs.data.splits import DataSource
from mdcs.errors import UserError

Array = np.ndarray[Any, Any]
Picture = str | PathLike[str] | Image.Image | Array
Images = Tensor | Array | Picture | Iterable[Picture]


def evaluation_crop(source: DataSource) -> Crop:
    """How a picture of any size becomes what the network of a run on `source` sees: as in the source's own evaluation."""
    size = source.image_size
    if not isinstance(size, int):
        raise UserError(f"data.image_size={size}: the run does not say how large its pictures are; write their side in its config.yaml")
    return Crop(size, size if size <= SMALL or source.as_stored else None)


def batches(images: Images, source: DataSource, batch_size: int) -> Iterator[Tensor]:
    """(B, 3, H, W) uint8: a tensor or array (N, 3, H, W) cut in parts; pictures of any size or paths, one or many, as squares."""
    if not isinstance(images, Iterable) or isinstance(images, str | PathLike) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    if not isinstance(images, Tensor | np.ndarray):
        images = list(images)
        crop = evaluation_crop(source)
        for start in range(0, len(images), batch_size):
            yield squares(images[start : start + batch_size], crop)
    elif images.dtype not in (torch.uint8, np.uint8) or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"pictures must be uint8 (N, 3, H, W) or a list of pictures or paths, not {images.dtype} {tuple(images.shape)}")
    else:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            yield (part if isinstance(part, Tensor) else torch.from_numpy(np.array(part)))  # a copy, as a memory map may be read-only


def squares(pictures: Sequence[Picture], crop: Crop) -> Tensor:
    """(N, 3, S, S) uint8."""
    return torch.from_numpy(np.stack([crop.plain(pixels(picture)) for picture in pictures]))


def pixels(picture: Picture) -> Array:
    """(H, W, 3) uint8 RGB of a path, a Pillow picture, or an array that is so already; upright, on white where transparent."""
    if isinstance(picture, str | PathLike):
        try:
            return decode(Path(picture).read_bytes(), str(picture))
        except OSError as error:
            raise UserError(f"{picture} cannot be read ({error.strerror or error})") from error
    if isinstance(picture, Image.Image):
        return np.asarray(rgb(ImageOps.exif_transpose(picture)))
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        return picture
    what = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
    raise UserError(f"a picture must be a path, a Pillow picture or an array (H, W, 3) uint8, not {what}")
