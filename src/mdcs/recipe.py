"""What `data=folder` and `data=table` leave open, chosen from their pictures: size, network, augmentation, length of training.

The choice is a list of command-line words, to be printed, so that it can be repeated and changed.
"""

import os
from typing import Any

from mdcs import config
from mdcs.build import make_source
from mdcs.data.folder import SMALL
from mdcs.errors import UserError
from mdcs.evaluation.comparison import COMPONENTS

AUTO = "auto"
STEPS = 6000  # of the optimiser, aimed at between MIN_EPOCHS and MAX_EPOCHS: consistency self-distillation wants thousands
MIN_EPOCHS, MAX_EPOCHS = 60, 100
MOST_WORKERS = 8
FEW_PICTURES = 2000  # up to which a batch is half as large, for twice as many steps of the same cost


def composed(words: list[str]) -> tuple[Any, list[str]]:
    """The configuration of `mdcs train` with `words`, and with what they and the dataset leave open decided; and lines to say of that."""
    keys = [word.partition("=")[0].lstrip("+") for word in words]
    # A word such as model.depth=14 has no meaning before the model is chosen.
    probe = [word for word, key in zip(words, keys, strict=True) if "." not in key or key.startswith("data.")]
    first = config.compose("train", probe)
    made = first.hydra.runtime.choices
    if absent := [group for group in COMPONENTS if group not in made]:
        raise UserError(f"{absent[0]} is missing: a run needs one, so leave out ~{absent[0]}")
    if AUTO not in (made["model"], made["augment"], first.data.get("image_size")):
        return config.compose("train", words), []

    node = config.with_absolute_paths({"data": config.plain(first)["data"]})["data"]
    survey = make_source(node).survey()
    size = node["image_size"] if node["image_size"] != AUTO else survey.image_size
    chosen = [f"data.image_size={size}"]
    if made["model"] == AUTO:
        chosen.append("model=resnet32" if size <= SMALL else "model=resnet50")
    if made["augment"] == AUTO:
        chosen.append("augment=cifar" if size <= SMALL else "augment=imagenet")
    batch_size = node["batch_size"]
    if "data.batch_size" not in keys and survey.num_pictures <= FEW_PICTURES:
        batch_size //= 2
        chosen.append(f"data.batch_size={batch_size}")
    if size > SMALL and "data.num_workers" not in keys:
        chosen.append(f"data.num_workers={min(MOST_WORKERS, os.cpu_count() or 1)}")
    if "trainer.max_epochs" not in keys and made.get("experiment") in (None, "null"):
        epochs = min(max(round(STEPS * batch_size / survey.num_pictures), MIN_EPOCHS), MAX_EPOCHS)
        chosen.append(f"trainer.max_epochs={epochs}")
        if "warmup_epochs" in first.loss and "loss.warmup_epochs" not in keys:
            chosen.append(f"loss.warmup_epochs={max(1, epochs // 20)}")  # 20 of 400 as published
    said = [*survey.lines, f"chosen from the pictures, change what you like: {' '.join(chosen)}"]
    given = [word for word in words if word.partition("=")[0].lstrip("+") != "data.image_size"]
    return config.compose("train", [*chosen, *given]), said
