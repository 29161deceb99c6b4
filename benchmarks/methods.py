"""All methods on two small sets at equal budget: every method forwards both views of every picture, for as many epochs.

    python benchmarks/methods.py digits                                     # 5 seeds, 120 epochs (1,200 steps): 35 CPU-minutes
    python benchmarks/methods.py cifar100_ten --root cifar100.zip           # 3 seeds, 30 epochs (1,140 steps): 70 CPU-minutes

cifar100_ten: ten classes of CIFAR-100 at IF 100 (500 to 5 pictures), ResNet-20 on 16 pixels. Each run is `mdcs train` on one thread, two at
a time; finished runs are kept. `seed` and `data.subset_seed` move together: pairs of runs share the subset and the test pictures. The last
epoch is scored, and nothing is chosen on the test split. The tables are those of `mdcs compare`, written to benchmarks/results/<set>/.
"""

import argparse
import shutil
from pathlib import Path

from mdcs.compare import compare

from runs import BOTH, train_all

EPOCHS = {"digits": 120, "cifar100_ten": 30}
SEEDS = {"digits": 5, "cifar100_ten": 3}
RAMP = {"digits": 20, "cifar100_ten": 2}  # published: 20 of 400 epochs, 3,400 of 68,000 steps


def methods(epochs: int, ramp: int) -> dict[str, list[str]]:
    """Overrides by name; `ramp` epochs until consistency has its full weight."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=list(EPOCHS))
    parser.add_argument("--root", default="data", help="CIFAR-100, any layout of data/README.md")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    which, epochs = arguments.which, arguments.epochs or EPOCHS[arguments.which]
    common = [f"trainer.max_epochs={epochs}"]
    if which == "cifar100_ten":
        common = [*common, "experiment=cifar100_ten", f"data.root={arguments.root}", "data.imbalance_factor=100", "model=resnet20"]
    wanted = {name: [*common, *words] for name, words in methods(epochs, RAMP[which]).items()}
    place, seeds = arguments.runs / which, range(arguments.seeds or SEEDS[which])
    train_all(wanted, seeds, place)
    output = arguments.output / which
    shutil.rmtree(output, ignore_errors=True)
    runs = [str(place / f"{name}-{seed}") for name in wanted for seed in seeds]
    compare(runs, output=str(output), reference=str(place / "bs3-0"))


if __name__ == "__main__":
    main()
