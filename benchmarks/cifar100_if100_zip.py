"""CIFAR-100-LT as one zip of about 45 MB: the long-tailed training pictures and all test pictures, to carry to where training happens.

    python benchmarks/cifar100_if100_zip.py data cifar100_lt.zip       # data: CIFAR-100, best as the official archive
    mdcs train experiment=cifar100_if100 data.root=cifar100_lt.zip     # as with the archive: the same pictures in the same order

The subset is that of the published code, IF 100, profile exp, subset_seed 0, if it is drawn from the official archive: the draw depends on
the order of the pictures in it. From class folders it is drawn in the order of their names. Pictures are stored as PNG, without loss, and
are named so that the draw from the zip, which takes all of them, yields them in the order of the draw from the source.
"""

import argparse
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mdcs.data.arrays import Cifar
from mdcs.data.classes import long_tailed_subset
from mdcs.data.tree import in_order

SUBSET_SEED = 0


def rows(images: Tensor, labels: Tensor, numbers: np.ndarray) -> Iterator[tuple[int, int, bytes]]:
    """(class, number of the picture, PNG) of each picture (3, H, W) uint8, by class and number."""
    for row in np.lexsort((numbers, labels.numpy())):
        content = io.BytesIO()
        Image.fromarray(images[row].permute(1, 2, 0).numpy()).save(content, format="PNG")
        yield int(labels[row]), int(numbers[row]), content.getvalue()


def write_zip(root: str, output: Path) -> int:
    """Write `output` and return its number of training pictures."""
    splits = Cifar(root, 100, subset_seed=SUBSET_SEED).splits()
    train, test, names = splits.train, splits.test, splits.classes.names
    assert test is not None
    assert names == in_order(names), "class folders are numbered in the order of their names"
    # The subset comes class after class. Its j-th picture lies where the draw from the zip looks for the j-th.
    places = {"train": long_tailed_subset(train.labels.numpy(), splits.classes.counts.tolist(), SUBSET_SEED)}
    places["test"] = np.arange(len(test.labels))
    part = output.with_name(output.name + ".part")
    with zipfile.ZipFile(part, "w") as archive:
        for split, pictures in (("train", train), ("test", test)):
            assert isinstance(pictures.images, Tensor)
            for label, number, content in rows(pictures.images, pictures.labels, places[split]):
                archive.writestr(zipfile.ZipInfo(f"{split}/{names[label]}/{number:05}.png"), content)
    part.replace(output)
    return len(train.labels)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="CIFAR-100, any layout of data/README.md")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args(words)
    count = write_zip(arguments.root, arguments.output)
    print(f"{arguments.output}: {count} training pictures, {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
