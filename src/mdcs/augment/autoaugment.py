"""AutoAugment's CIFAR-10 policy, each picture with its own sub-policy, gates and signs. arXiv:1805.09501, Table 7 as in the MDCS code."""

from collections.abc import Callable
from typing import NamedTuple

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

# Blends: (pictures, factor) -> pictures.
BLENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"color": ops.color, "sharpness": ops.sharpness}
# Tables that depend on the picture: (pictures, factor) -> tables.
MEASURED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrast": ops.contrast_table,
    "autocontrast": lambda images, factor: ops.autocontrast_table(images),
    "equalize": lambda images, factor: ops.equalize_table(images),
}
# Tables that do not: (any picture, level, factor) -> tables; made once.
FIXED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "brightness": lambda image, level, factor: ops.brightness_table(image, factor),
    "posterize": lambda image, level, factor: ops.posterize_table(image, (8 - level * (4 / 9)).round().long()),
    "solarize": lambda image, level, factor: ops.solarize_table(image, 256 - level * (256 / 9)),
    "invert": lambda image, level, factor: ops.invert_table(image),
}
MOVES = ("rotate", "translate_y", "translate_x")
# All moves are one gather, all tables one look-up.
GROUPS = ("moves", "shear_y", *BLENDS, *MEASURED, "fixed", "none")
NONE = len(GROUPS) - 1


class Places(NamedTuple):
    """Where the pixels of each move and each shear of the policy come from, P = H·W; made once per size of pictures."""

    moves_VP: Tensor  # see `ops.moved`
    shears_S: ops.Shear


class AutoAugment(Policy):
    """One of 25 sub-policies, uniformly; each of its two operations with its own probability; a random sign where the operation has one."""

    draws = 5  # sub-policy, gate 1, gate 2, sign 1, sign 2

    def __init__(self) -> None:
        super().__init__()
        # Integers, so that casting the module to bfloat16 does not touch them; levels carry their sign.
        moves, shears, tables = [[0, 0, 0]], [0], [_fixed("none", 0, 1)]
        rows = []  # by sub-policy, operation and sign: group, move, shear, table, level
        for pair in SUB_POLICIES:
            for name, _, level in pair:
                for sign in (-1, 1):
                    group, move, shear, table = name, 0, 0, 0
                    if name in MOVES:  # rotation is one-sided, as published
                        group, move = "moves", len(moves)
                        moves.append([(level if m == "rotate" else sign * level) * (m == name) for m in MOVES])
                    elif name == "shear_y":
                        shear = len(shears)
                        shears.append(sign * level)
                    elif name in FIXED:
                        group, table = "fixed", len(tables)
                        tables.append(_fixed(name, level, sign))
                    rows.append((GROUPS.index(group), move, shear, table, sign * level))
        buffers = {
            "chosen": torch.tensor(rows).view(len(SUB_POLICIES), 2, 2, 5),
            "tenths": torch.tensor([[tenths for _, tenths, _ in pair] for pair in SUB_POLICIES]),
            "moves": torch.tensor(moves),
            "shears": torch.tensor(shears),
            "tables": torch.cat(tables),
        }
        self.chosen: Tensor
        self.tenths: Tensor
        self.moves: Tensor
        self.shears: Tensor
        self.tables: Tensor
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        self._places: dict[tuple[int, int, torch.device], Places] = {}

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 and (B, 5) in [0, 1) -> (B, 3, H, W) uint8."""
        return self.apply_chosen(images, *self.choose(uniform))

    def choose(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sub-policy (B,) int64 in 0..24, gates (B, 2) bool, signs (B, 2) int64 0 or 1 for plus, from (B, 5) uniform numbers."""
        sub_policy_B = (uniform[:, 0] * len(SUB_POLICIES)).long()
        gates_B2 = uniform[:, 1:3] * 10 < self.tenths[sub_policy_B]
        return sub_policy_B, gates_B2, (uniform[:, 3:5] >= 0.5).long()

    def apply_chosen(self, images_B3HW: Tensor, sub_policy_B: Tensor, gates_B2: Tensor, signs_B2: Tensor) -> Tensor:
        """Both operations of each picture's sub-policy, where its gate is open; new pictures, the given ones stay."""
        places = self._places_of(images_B3HW)
        apply = _in_groups if ops.sorts(images_B3HW) else _at_once
        for step in (0, 1):
            chosen_B5 = self.chosen[sub_policy_B, step, signs_B2[:, step]]
            group_B = torch.where(gates_B2[:, step], chosen_B5[:, 0], NONE)
            images_B3HW = apply(images_B3HW, group_B, chosen_B5[:, 1:], places, self.tables)
        return images_B3HW

    def _places_of(self, images_B3HW: Tensor) -> Places:
        height, width = images_B3HW.shape[2:]
        key = (height, width, images_B3HW.device)
        if key not in self._places:
            turn_V, down_V, right_V = self.moves.double().unbind(1)
            side = 150 / 331 / 9
            moves_VP = ops.moved(turn_V * (30 / 9), down_V * (side * height), right_V * (side * width), height, width)
            self._places[key] = Places(moves_VP, ops.shear_taps(self.shears.double() * (0.3 / 9), height, width))
        return self._places[key]


def _fixed(name: str, level: int, sign: int) -> Tensor:
    """(1, 256) uint8: the table of one of FIXED, else the levels as they are."""
    if name not in FIXED:
        return torch.arange(256, dtype=torch.uint8)[None]
    level_1 = torch.tensor([level], dtype=torch.float64)
    return FIXED[name](torch.empty(1, 3, 1, 1, dtype=torch.uint8), level_1, _factor(sign * level_1))[:, 0]


def _factor(level: Tensor) -> Tensor:
    return 1 + level.double() * 0.1


def _in_groups(images_B3HW: Tensor, group_B: Tensor, rows_B4: Tensor, places: Places, tables_TG: Tensor) -> Tensor:
    """Each picture's operation, on the pictures sorted by it, so that none is computed for a picture that does not want it.

    `rows`: move, shear and table as rows of `places` and `tables`, and the level with its sign.
    """
    sizes = torch.bincount(group_B, minlength=len(GROUPS)).tolist()  # on another device the host would wait for these
    order_B = group_B.argsort()
    images_B3HW, rows_B4 = images_B3HW.index_select(0, order_B), rows_B4.index_select(0, order_B)
    first = sum(sizes[: GROUPS.index(next(iter(MEASURED)))])
    changed, tables = [], [tables_TG[:0, None].expand(-1, 3, -1)]
    for name, images, rows in zip(GROUPS, images_B3HW.split(sizes), rows_B4.split(sizes), strict=True):
        move, shear, table, level = rows.unbind(1)
        if len(images) == 0 or name == "none":
            part = images
        elif name in MEASURED:
            tables.append(MEASURED[name](images, _factor(level)).expand(-1, 3, -1))
            continue
        elif name == "fixed":
            tables.append(tables_TG.index_select(0, table).unsqueeze(1).expand(-1, 3, -1))
            continue
        elif name == "moves":
            part = ops.take_at(images, places.moves_VP.index_select(0, move), GREY)
        elif name == "shear_y":
            part = ops.shear_at(images, places.shears_S.rows(shear), GREY)
        else:
            part = BLENDS[name](images, _factor(level))
        changed.append(part)
    table_B3G = torch.cat(tables)
    changed.insert(-1, ops.look_up(images_B3HW[first : first + len(table_B3G)], table_B3G))
    return torch.cat(changed).index_select(0, order_B.argsort())


def _at_once(images_B3HW: Tensor, group_B: Tensor, rows_B4: Tensor, places: Places, tables_TG: Tensor) -> Tensor:
    """The same: every operation on every picture, which keeps its own. No shape depends on the choices, so the host waits for nothing."""
    move_B, shear_B, table_B, level_B = rows_B4.unbind(1)
    factor_B = _factor(level_B)
    is_group = {name: (group_B == number)[:, None, None] for number, name in enumerate(GROUPS)}
    tables_B3G = tables_TG[torch.where(group_B == GROUPS.index("fixed"), table_B, 0)].unsqueeze(1)
    for name, table in MEASURED.items():
        tables_B3G = torch.where(is_group[name], table(images_B3HW, factor_B), tables_B3G)
    others = {
        "moves": ops.take_at(images_B3HW, places.moves_VP.index_select(0, move_B), GREY),
        "shear_y": ops.shear_at(images_B3HW, places.shears_S.rows(shear_B), GREY),
    } | {name: blend(images_B3HW, factor_B) for name, blend in BLENDS.items()}
    changed_B3HW = ops.look_up(images_B3HW, tables_B3G)
    for name, other_B3HW in others.items():
        changed_B3HW = torch.where(is_group[name].unsqueeze(3), other_B3HW, changed_B3HW)
    return changed_B3HW
