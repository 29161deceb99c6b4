"""All methods on small sets at equal budget: every method forwards both views of every picture, for as many epochs.

    python benchmarks/methods.py digits                                       # 14 methods, 5 seeds, 120 epochs: 35 CPU-minutes
    python benchmarks/methods.py cifar100_ten --root cifar100.zip             # 6 methods, 3 seeds, 100 epochs: 75 CPU-minutes
    python benchmarks/methods.py cifar100_ten_if100 --root cifar100.zip       # 14 methods, 3 seeds, 30 epochs: 75 CPU-minutes
    python benchmarks/methods.py own_folder --root cifar100.zip               # 3 methods, 3 seeds, 100 epochs: 75 CPU-minutes

cifar100_ten: the card conf/experiment/cifar100_ten.yaml, ten classes at IF 50 on ResNet-8. cifar100_ten_if100: the same classes at IF 100
(500 to 5 pictures) on ResNet-20, still 16 pixels. own_folder: the same classes (200 to 4) as a practitioner has them, a folder whose size,
network, augmentation, batch and epochs `mdcs train data=folder` chooses by itself; a tenth of its training pictures is set aside for
validation and chooses nothing.

Each run is `mdcs train` on one thread, two at a time; finished runs are kept. `seed` and `data.subset_seed` move together: pairs of runs
share the subset and the test pictures. The last epoch is scored, and nothing is chosen on the test split. The tables of `mdcs compare`
are written to benchmarks/results/<set>.md, its figures to <runs>/<set>-compared/.
"""

import argparse
import zipfile
from pathlib import Path
from typing import NamedTuple

from mdcs.compare import compare
from runs import BOTH, train_all

CLASSES = ["bee", "bottle", "bus", "chair", "crab", "dolphin", "fox", "lamp", "rabbit", "tractor"]
FEW = ("ce", "ce3", "bs", "bs3", "mdcs_alpha0", "mdcs")


class Set(NamedTuple):
    """What is trained on, and for how long; `ramp` epochs until consistency has its full weight (published: 20 of 400)."""

    words: list[str]
    epochs: int
    ramp: int
    seeds: int
    methods: tuple[str, ...] | None = None
    reference: str = "bs3"


SETS = {
    "digits": Set([], 120, 20, 5),
    "cifar100_ten": Set(["experiment=cifar100_ten", "data.root={root}"], 100, 5, 3, FEW),
    "cifar100_ten_if100": Set(["experiment=cifar100_ten", "data.root={root}", "data.imbalance_factor=100", "model=resnet20"], 30, 2, 3),
    "own_folder": Set(["data=folder", "data.root={folder}", "trainer.precision=auto"], 100, 5, 3, ("ce", "ce3", "mdcs"), "ce3"),
}


def methods(epochs: int, ramp: int) -> dict[str, list[str]]:
    """Overrides by name."""
    single, deferred = "model.num_experts=1", f"loss.reweight_epoch={epochs * 4 // 5}"  # published: 160 of 200
    mdcs = ["loss=mdcs", f"loss.warmup_epochs={ramp}"]
    return {
        "ce": ["loss=ce", BOTH, single],
        "ce3": ["loss=ce", BOTH],
        "focal": ["loss=focal", BOTH, single],
        "cb_ce": ["loss=cb_ce", BOTH, single, deferred],
        "ldam_drw": ["loss=ldam_drw", BOTH, single, deferred],
        "bs": ["loss=balanced_softmax", BOTH, single],
        "bs3": ["loss=balanced_softmax", BOTH],
        "ride": ["loss=ride", BOTH, deferred],
        "sade": ["loss=sade", BOTH],
        "balpoe": ["loss=balpoe", BOTH],
        "balpoe_mixup": ["loss=balpoe", BOTH, "augment.mixup=0.4"],
        "mdcs_alpha0": [*mdcs, "loss.alpha=0"],
        "mdcs": mdcs,
        "mdcs_ema": [*mdcs, "loss.teacher=ema", "optim.ema_decay=0.99"],
    }


def make_folder(archive: Path, folder: Path) -> None:
    """The first 200 to 4 training pictures of each class as train/<class>/*.png, all test pictures as test/<class>/*.png."""
    with zipfile.ZipFile(archive) as source:
        names = sorted(name for name in source.namelist() if name.endswith(".png"))
        for c, label in enumerate(CLASSES):
            for split, most in (("train", int(200 * 50 ** (-c / 9))), ("test", None)):
                (folder / split / label).mkdir(parents=True, exist_ok=True)
                for name in [name for name in names if f"{split}/{label}/" in name][:most]:
                    (folder / split / label / Path(name).name).write_bytes(source.read(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=list(SETS))
    parser.add_argument("--root", type=Path, default=Path("data"), help="CIFAR-100, any layout of data/README.md (own_folder: the zip)")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    chosen, place = SETS[arguments.which], arguments.runs.absolute() / arguments.which
    epochs, pictures = arguments.epochs or chosen.epochs, place.with_name("pictures")
    if "{folder}" in " ".join(chosen.words) and not pictures.exists():
        make_folder(arguments.root, pictures.with_suffix(".part"))
        pictures.with_suffix(".part").rename(pictures)
    common = [word.format(root=arguments.root.absolute(), folder=pictures) for word in chosen.words] + [f"trainer.max_epochs={epochs}"]
    of_all = methods(epochs, chosen.ramp)
    wanted = {name: [*common, *of_all[name]] for name in chosen.methods or of_all}
    seeds = range(arguments.seeds or chosen.seeds)
    scores = train_all(wanted, seeds, place)
    compared = place.with_name(f"{arguments.which}-compared")
    runs = [str(place / f"{name}-{seed}") for name in wanted for seed in seeds]
    compare(runs, output=str(compared), reference=str(place / f"{chosen.reference}-0"), overwrite=True)
    known = scores["mdcs", 0]
    head = (
        f"# {arguments.which}: {len(seeds)} seeds a method\n\n"
        f"`python benchmarks/methods.py {arguments.which}`, commit {known['git_commit']}, torch {known['versions']['torch']}, "
        f"{known['device']}, one thread a run, {known['precision']}, last epoch. Seconds are of a machine that did other things, too.\n\n"
    )
    arguments.output.mkdir(exist_ok=True, parents=True)
    text = head + (compared / "compare.md").read_text(encoding="utf-8")
    (arguments.output / f"{arguments.which}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
