"""RandAugment, each picture with its own operations, magnitudes, signs and interpolation.

arXiv:1909.13719, with the operations and ranges of what timm and the published code of MDCS call `rand-n2-m10-mstd0.5`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mdcs.augment import ops, resample
from mdcs.errors import UserError
from mdcs.types import Policy

FILL = (124, 116, 104)  # what comes from outside: ImageNet's mean colour


def _enhance(level_B: Tensor) -> Tensor:
    return level_B / 10 * 1.8 + 0.1


# Four families; levels are float64 in 0..10, signs ±1. What moves pixels: (level, sign, height, width) -> matrix (B, 2, 3).
PLACES: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "rotate": lambda level, sign, height, width: resample.rotation(sign * (level / 10 * 30), height, width),
    "shear_x": lambda level, sign, height, width: resample.shear_x(sign * (level / 10 * 0.3)),
    "shear_y": lambda level, sign, height, width: resample.shear_y(sign * (level / 10 * 0.3)),
    "translate_x": lambda level, sign, height, width: resample.translation(sign * (level / 10 * 0.45) * width, 0 * level),
    "translate_y": lambda level, sign, height, width: resample.translation(0 * level, sign * (level / 10 * 0.45) * height),
}
ALONG = ("both", "x", "y")  # see `resample.transform`: rotate; shear_x and translate_x; shear_y and translate_y
# What mixes pixels: (pictures, level) -> pictures.
BLENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": lambda images, level: ops.color(images, _enhance(level)),
    "sharpness": lambda images, level: ops.sharpness(images, _enhance(level)),
}
# What maps grey levels: (pictures, level) -> tables.
TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda images, level: ops.autocontrast_table(images),
    "equalize": lambda images, level: ops.equalize_table(images),
    "invert": lambda images, level: ops.invert_table(images),
    "posterize": lambda images, level: ops.posterize_table(images, (level / 10 * 4).long()),
    "solarize": lambda images, level: ops.solarize_table(images, (level / 10 * 256).long()),
    "solarize_add": lambda images, level: ops.solarize_add_table(images, (level / 10 * 110).long()),
    "contrast": lambda images, level: ops.contrast_table(images, _enhance(level)),
    "brightness": lambda images, level: ops.brightness_table(images, _enhance(level)),
}
NAMES = (*PLACES, *BLENDS, *TABLES)
NUM_GROUPS = 2 * len(ALONG) + len(BLENDS) + len(TABLES) + 1  # of pictures that are treated alike; see `RandAugment.apply_chosen`


class RandAugment(Policy):
    """`num_ops` operations in turn, each drawn uniformly from 15 with replacement and applied with `probability`.

    Magnitudes are N(`magnitude`, `magnitude_std`) clipped to 0..10, so that half of them are 10 with the defaults. Moves have a random
    sign, and are bilinear or bicubic at random.
    """

    def __init__(self, num_ops: int = 2, magnitude: float = 10.0, magnitude_std: float = 0.5, probability: float = 0.5) -> None:
        super().__init__()
        limits = {
            "num_ops": (num_ops, 15),
            "magnitude": (magnitude, 10),
            "magnitude_std": (magnitude_std, 10),
            "probability": (probability, 1),
        }
        for name, (value, high) in limits.items():
            if not 0 <= value <= high:
                raise UserError(f"{name}={value}: expected 0 to {high}; change augment.weak.{name} or augment.strong.{name}")
        self.num_ops, self.magnitude, self.magnitude_std, self.probability = num_ops, magnitude, magnitude_std, probability
        self.draws = 5 * num_ops  # for each: operation, gate, magnitude, sign, interpolation

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 and (B, draws) in [0, 1) -> (B, 3, H, W) uint8."""
        return self.apply_chosen(images, *self.choose(uniform))

    def choose(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, num_ops) each: operation int64, an index into NAMES or len(NAMES) for none; level float64; sign float64 ±1; cubic bool."""
        operation, gate, normal, sign, cubic = uniform.unflatten(1, (self.num_ops, 5)).unbind(2)
        operation = torch.where(gate < self.probability, (operation * len(NAMES)).long(), len(NAMES))
        # the inverse of the normal distribution function, finite where 0 was drawn
        level = self.magnitude + self.magnitude_std * torch.special.ndtri(normal.double().clamp(min=2**-25))
        return operation, level.clamp(0, 10), torch.where(sign < 0.5, -1.0, 1.0).double(), cubic < 0.5

    def apply_chosen(self, images: Tensor, operation: Tensor, level: Tensor, sign: Tensor, cubic: Tensor) -> Tensor:
        """What `choose` returned, done to (B, 3, H, W) uint8; the given pictures stay as they are."""
        if not ops.sorts(images):
            for step in range(self.num_ops):
                images = _at_once(images, operation[:, step], level[:, step], sign[:, step], cubic[:, step])
            return images
        # Groups: places by what they move along, bilinear and bicubic; one for each other operation; none.
        along = torch.where(operation == 0, 0, 2 - operation % 2)  # in the order of PLACES
        group = torch.where(operation < len(PLACES), 2 * along + cubic, operation - len(PLACES) + 2 * len(ALONG))
        for step in range(self.num_ops):
            order_B = group[:, step].argsort()
            sizes = torch.bincount(group[:, step], minlength=NUM_GROUPS).tolist()  # on a GPU the host would wait for these
            columns = (images, operation[:, step], level[:, step], sign[:, step])
            groups = zip(*(column.index_select(0, order_B).split(sizes) for column in columns), strict=True)
            images = torch.cat([_in_group(number, *chosen) for number, chosen in enumerate(groups)]).index_select(0, order_B.argsort())
        return images


def _matrices(operation_B: Tensor, level_B: Tensor, sign_B: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, 3) float64; 0 for what is not a place."""
    matrix_B23 = torch.zeros(len(level_B), 2, 3, dtype=torch.float64, device=level_B.device)
    for number, matrix in enumerate(PLACES.values()):
        matrix_B23 = torch.where((operation_B == number)[:, None, None], matrix(level_B, sign_B, height, width), matrix_B23)
    return matrix_B23


def _in_group(number: int, images_B3HW: Tensor, operation_B: Tensor, level_B: Tensor, sign_B: Tensor) -> Tensor:
    """Pictures of the group of that number, as `RandAugment.apply_chosen` counts them, after their operation."""
    if not len(images_B3HW) or number == NUM_GROUPS - 1:
        return images_B3HW
    if number < 2 * len(ALONG):
        rows, matrix_B23 = ops.rows_at_a_time(images_B3HW), _matrices(operation_B, level_B, sign_B, *images_B3HW.shape[2:])
        how = number % 2 == 1, FILL, ALONG[number // 2]
        parts = zip(images_B3HW.split(rows), matrix_B23.split(rows), strict=True)
        return torch.cat([resample.transform(part_B3HW, matrix, *how) for part_B3HW, matrix in parts])
    name = NAMES[number - 2 * len(ALONG) + len(PLACES)]
    if name in BLENDS:
        return BLENDS[name](images_B3HW, level_B)
    return ops.look_up(images_B3HW, TABLES[name](images_B3HW, level_B))


def _at_once(images_B3HW: Tensor, operation_B: Tensor, level_B: Tensor, sign_B: Tensor, cubic_B: Tensor) -> Tensor:
    """The same: every operation on every picture, which keeps its own. No shape depends on the choices, so the host waits for nothing."""
    matrix_B23 = _matrices(operation_B, level_B, sign_B, *images_B3HW.shape[2:])
    parts = (column.split(ops.rows_at_a_time(images_B3HW)) for column in (images_B3HW, operation_B, level_B, matrix_B23, cubic_B))
    return torch.cat([_each(*part) for part in zip(*parts, strict=True)])


def _each(images_B3HW: Tensor, operation_B: Tensor, level_B: Tensor, matrix_B23: Tensor, cubic_B: Tensor) -> Tensor:
    is_operation = {name: (operation_B == number)[:, None, None] for number, name in enumerate(NAMES)}
    tables_B3G = torch.arange(256, dtype=torch.uint8, device=images_B3HW.device).expand(len(images_B3HW), 3, -1)
    for name, table in TABLES.items():
        tables_B3G = torch.where(is_operation[name], table(images_B3HW, level_B), tables_B3G)
    changed_B3HW = ops.look_up(images_B3HW, tables_B3G)
    for name, blend in BLENDS.items():
        changed_B3HW = torch.where(is_operation[name].unsqueeze(3), blend(images_B3HW, level_B), changed_B3HW)
    is_place_B = operation_B < len(PLACES)
    for cubic in (False, True):
        chosen_B111 = (is_place_B & (cubic_B == cubic))[:, None, None, None]
        changed_B3HW = torch.where(chosen_B111, resample.transform(images_B3HW, matrix_B23, cubic, FILL), changed_B3HW)
    return changed_B3HW
