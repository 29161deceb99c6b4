"""The plain way to both views: Pillow, one picture at a time, as data sets of the published kind do. Written from the published semantics.

`cifar`: crop after padding, flip, and rotation, or AutoAugment's CIFAR-10 policy and Cutout. `imagenet`: flip and colour jitter, with or
without RandAugment; the random crops before them are the decoder's (benchmarks/decode.py). Each returns picture -> (weak, strong), float32
(3, H, W), normalised. Randomness is `random`'s, as published.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mdcs.augment.autoaugment import SUB_POLICIES

Picture = Image.Image
Views = Callable[[Picture], tuple[Tensor, Tensor]]
GREY, MEAN_COLOUR = (128, 128, 128), (124, 116, 104)
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def crop_and_flip(picture: Picture, padding: int = 4) -> Picture:
    """A window of the picture's size in the picture padded with black; mirrored in half of the cases."""
    width, height = picture.size
    padded = ImageOps.expand(picture, padding)
    left, top = random.randint(0, 2 * padding), random.randint(0, 2 * padding)
    picture = padded.crop((left, top, left + width, top + height))
    return ImageOps.mirror(picture) if random.random() < 0.5 else picture


def _moved(picture: Picture, matrix: tuple[float, ...], kind: Image.Resampling = Image.Resampling.NEAREST) -> Picture:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, kind, fillcolor=GREY)


def _rotated(picture: Picture, degrees: float) -> Picture:
    turned = picture.convert("RGBA").rotate(degrees)
    return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")


# (picture, level 0..9, sign) -> picture
AUTOAUGMENT: dict[str, Callable[[Picture, int, int], Picture]] = {
    "shear_y": lambda p, level, sign: _moved(p, (1, 0, 0, sign * level / 30, 1, 0), Image.Resampling.BICUBIC),
    "translate_x": lambda p, level, sign: _moved(p, (1, 0, sign * level * 150 / 331 / 9 * p.size[0], 0, 1, 0)),
    "translate_y": lambda p, level, sign: _moved(p, (1, 0, 0, 0, 1, sign * level * 150 / 331 / 9 * p.size[1])),
    "rotate": lambda p, level, sign: _rotated(p, level * 30 / 9),
    "color": lambda p, level, sign: ImageEnhance.Color(p).enhance(1 + sign * level * 0.1),
    "sharpness": lambda p, level, sign: ImageEnhance.Sharpness(p).enhance(1 + sign * level * 0.1),
    "brightness": lambda p, level, sign: ImageEnhance.Brightness(p).enhance(1 + sign * level * 0.1),
    "contrast": lambda p, level, sign: ImageEnhance.Contrast(p).enhance(1 + sign * level * 0.1),
    "posterize": lambda p, level, sign: ImageOps.posterize(p, round(8 - level * 4 / 9)),
    "solarize": lambda p, level, sign: ImageOps.solarize(p, 256 - level * 256 / 9),
    "invert": lambda p, level, sign: ImageOps.invert(p),
    "autocontrast": lambda p, level, sign: ImageOps.autocontrast(p),
    "equalize": lambda p, level, sign: ImageOps.equalize(p),
}


def autoaugment(picture: Picture) -> Picture:
    """One random sub-policy of AutoAugment's CIFAR-10 policy."""
    for name, tenths, level in random.choice(SUB_POLICIES):
        if random.random() < tenths / 10:
            picture = AUTOAUGMENT[name](picture, level, random.choice((-1, 1)))
    return picture


def randaugment(picture: Picture) -> Picture:
    """rand-n2-m10-mstd0.5."""
    for _ in range(2):
        operation = random.randrange(15)
        if random.random() < 0.5:
            continue
        level = min(max(random.gauss(10, 0.5), 0.0), 10.0)
        sign, kind = random.choice((-1, 1)), random.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
        width, height = picture.size
        slope, share, factor = sign * 0.03 * level, sign * 0.045 * level, 0.18 * level + 0.1
        if operation == 0:
            picture = picture.rotate(sign * 3 * level, kind, fillcolor=MEAN_COLOUR)
        elif operation <= 4:
            matrix = ((1, slope, 0, 0, 1, 0), (1, 0, 0, slope, 1, 0), (1, 0, share * width, 0, 1, 0), (1, 0, 0, 0, 1, share * height))
            picture = picture.transform(picture.size, Image.Transform.AFFINE, matrix[operation - 1], kind, fillcolor=MEAN_COLOUR)
        elif operation <= 8:
            enhance = (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness)[operation - 5]
            picture = enhance(picture).enhance(factor)
        elif operation <= 11:
            picture = (ImageOps.autocontrast, ImageOps.equalize, ImageOps.invert)[operation - 9](picture)
        elif operation == 12:
            picture = ImageOps.posterize(picture, int(0.4 * level))
        elif operation == 13:
            picture = ImageOps.solarize(picture, int(25.6 * level))
        else:
            picture = picture.point([min(255, grey + int(11 * level)) if grey < 128 else grey for grey in range(256)] * 3)
    return picture


def flip_and_jitter(picture: Picture) -> Picture:
    """Mirrored in half of the cases; brightness, contrast and saturation by factors in 0.6 to 1.4, in random order."""
    if random.random() < 0.5:
        picture = ImageOps.mirror(picture)
    for enhance in random.sample((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), 3):
        picture = enhance(picture).enhance(random.uniform(0.6, 1.4))
    return picture


def tensor(picture: Picture) -> Tensor:
    """(3, H, W) float32 in 0..1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


def cutout(image_3HW: Tensor, size: int = 16) -> Tensor:
    """A black square, clipped at the border."""
    height, width = image_3HW.shape[1:]
    y, x = random.randrange(height), random.randrange(width)
    mask = torch.ones(height, width)
    mask[max(0, y - size // 2) : y + size // 2, max(0, x - size // 2) : x + size // 2] = 0
    return image_3HW * mask


def _normalised(statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Callable[[Tensor], Tensor]:
    mean_311, std_311 = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    return lambda image_3HW: image_3HW.sub(mean_311).div(std_311)


def cifar() -> Views:
    """Both views of CIFAR-10/100-LT."""
    normalise = _normalised(CIFAR)

    def views(picture: Picture) -> tuple[Tensor, Tensor]:
        weak = crop_and_flip(picture).rotate(random.uniform(-15, 15))
        strong = autoaugment(crop_and_flip(picture))
        return normalise(tensor(weak)), normalise(cutout(tensor(strong)))

    return views


def imagenet() -> Views:
    """Both views of ImageNet-LT and Places-LT after their crops; here of one crop."""
    normalise = _normalised(IMAGENET)

    def views(picture: Picture) -> tuple[Tensor, Tensor]:
        return normalise(tensor(flip_and_jitter(picture))), normalise(tensor(randaugment(flip_and_jitter(picture))))

    return views
