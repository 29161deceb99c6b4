"""AutoAugment's CIFAR-10 policy, each picture with its own sub-policy, gates and signs. arXiv:1805.09501, Table 7 as in the MDCS code."""

from collections.abc import Callable

import torch
from torch import Tensor

from mdcs.augment import ops
from mdcs.types import Policy

GREY = 128  # fill of what comes from outside

# (operation, probability in tenths, level 0..9), twice.
SUB_POLICIES = (
    (("invert", 1, 7), ("contrast", 2, 6)),
    (("rotate", 7, 2), ("translate_x", 3, 9)),
    (("sharpness", 8, 1), ("sharpness", 9, 3)),
    (("shear_y", 5, 8), ("translate_y", 7, 9)),
    (("autocontrast", 5, 8), ("equalize", 9, 2)),
    (("shear_y", 2, 7), ("posterize", 3, 7)),
    (("color", 4, 3), ("brightness", 6, 7)),
    (("sharpness", 3, 9), ("brightness", 7, 9)),
    (("equalize", 6, 5), ("equalize", 5, 1)),
    (("contrast", 6, 7), ("sharpness", 6, 5)),
    (("color", 7, 7), ("translate_x", 5, 8)),
    (("equalize", 3, 7), ("autocontrast", 4, 8)),
    (("translate_y", 4, 3), ("sharpness", 2, 6)),
    (("brightness", 9, 6), ("color", 2, 8)),
    (("solarize", 5, 2), ("invert", 0, 3)),
    (("equalize", 2, 0), ("autocontrast", 6, 0)),
    (("equalize", 2, 8), ("equalize", 6, 4)),
    (("color", 9, 9), ("equalize", 6, 6)),
    (("autocontrast", 8, 4), ("solarize", 2, 8)),
    (("brightness", 1, 3), ("color", 7, 0)),
    (("solarize", 4, 5), ("autocontrast", 9, 3)),
    (("translate_y", 9, 9), ("translate_y", 7, 9)),
    (("autocontrast", 9, 2), ("solarize", 8, 3)),
    (("equalize", 8, 8), ("invert", 1, 3)),
    (("translate_y", 7, 9), ("autocontrast", 9, 1)),
)

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def _translate_x(images_B3HW: Tensor, level_B: Tensor, sign_B: Tensor) -> Tensor:
    right_B = sign_B * level_B * (150 / 331 / 9 * images_B3HW.shape[3])
    return ops.translate(images_B3HW, torch.zeros_like(right_B), right_B, GREY)


def _translate_y(images_B3HW: Tensor, level_B: Tensor, sign_B: Tensor) -> Tensor:
    down_B = sign_B * level_B * (150 / 331 / 9 * images_B3HW.shape[2])
    return ops.translate(images_B3HW, down_B, torch.zeros_like(down_B), GREY)


# What moves or mixes pixels: (pictures, level, sign) -> pictures. Level and sign (±1) are float64. Rotation is one-sided, as published.
PIXELS: dict[str, Operation] = {
    "shear_y": lambda images, level, sign: ops.shear_y(images, sign * level * (0.3 / 9), GREY),
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": lambda images, level, sign: ops.rotate(images, level * (30 / 9), GREY),
    "color": lambda images, level, sign: ops.color(images, 1 + sign * level * 0.1),
    "sharpness": lambda images, level, sign: ops.sharpness(images, 1 + sign * level * 0.1),
}
# What maps grey levels: (pictures, level, sign) -> tables; all pictures that need one share a single gather.
TABLES: dict[str, Operation] = {
    "brightness": lambda images, level, sign: ops.brightness_table(images, 1 + sign * level * 0.1),
    "contrast": lambda images, level, sign: ops.contrast_table(images, 1 + sign * level * 0.1),
    "posterize": lambda images, level, sign: ops.posterize_table(images, (8 - level * (4 / 9)).round().long()),
    "solarize": lambda images, level, sign: ops.solarize_table(images, 256 - level * (256 / 9)),
    "invert": lambda images, level, sign: ops.invert_table(images),
    "autocontrast": lambda images, level, sign: ops.autocontrast_table(images),
    "equalize": lambda images, level, sign: ops.equalize_table(images),
}
NAMES = (*PIXELS, *TABLES)


class AutoAugment(Policy):
    """One of 25 sub-policies, uniformly; each of its two operations with its own probability; a random sign where the operation has one."""

    draws = 5  # sub-policy, gate 1, gate 2, sign 1, sign 2

    def __init__(self) -> None:
        super().__init__()
        # Integers (operation, tenths, level), so that casting the module to bfloat16 does not touch them.
        rows = [[(NAMES.index(name), tenths, level) for name, tenths, level in pair] for pair in SUB_POLICIES]
        self.table: Tensor  # (25, 2, 3)
        self.register_buffer("table", torch.tensor(rows), persistent=False)

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 and (B, 5) in [0, 1) -> (B, 3, H, W) uint8."""
        return self.apply_chosen(images, *self.choose(uniform))

    def choose(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sub-policy (B,) int64 in 0..24, gates (B, 2) bool, signs (B, 2) float64 ±1, from (B, 5) uniform numbers."""
        sub_policy_B = (uniform[:, 0] * len(SUB_POLICIES)).long()
        gates_B2 = uniform[:, 1:3] * 10 < self.table[sub_policy_B, :, 1]
        signs_B2 = torch.where(uniform[:, 3:5] < 0.5, -1.0, 1.0).double()
        return sub_policy_B, gates_B2, signs_B2

    def apply_chosen(self, images_B3HW: Tensor, sub_policy_B: Tensor, gates_B2: Tensor, signs_B2: Tensor) -> Tensor:
        """Both operations of each picture's sub-policy, where its gate is open; new pictures, the given ones stay."""
        images_B3HW = images_B3HW.clone()
        for step in (0, 1):
            operation_B, _, level_B = self.table[sub_policy_B, step].unbind(1)
            operation_B = torch.where(gates_B2[:, step], operation_B, len(NAMES))
            _apply(images_B3HW, operation_B, level_B.double(), signs_B2[:, step])
        return images_B3HW


def _apply(images_B3HW: Tensor, operation_B: Tensor, level_B: Tensor, sign_B: Tensor) -> None:
    """Change each picture in place by its operation, an index into NAMES; len(NAMES) is none. One pass per operation that occurs."""
    # The sizes of the groups are the only thing that the host must wait for on another device.
    sizes = torch.bincount(operation_B, minlength=len(NAMES) + 1).tolist()
    groups = operation_B.argsort().split(sizes)[: len(NAMES)]
    mapped, tables = [operation_B.new_empty(0)], [images_B3HW.new_empty(0, 3, 256)]
    for name, rows in zip(NAMES, groups, strict=True):
        if len(rows) == 0:
            continue
        inputs = images_B3HW[rows], level_B[rows], sign_B[rows]
        if name in PIXELS:
            images_B3HW[rows] = PIXELS[name](*inputs)
        else:
            mapped.append(rows)
            tables.append(TABLES[name](*inputs).expand(-1, 3, -1))
    mapped_rows = torch.cat(mapped)
    images_B3HW[mapped_rows] = ops.look_up(images_B3HW[mapped_rows], torch.cat(tables))
