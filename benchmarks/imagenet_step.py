"""Does training at ImageNet size run, and what memory does it take: 3 steps of ResNeXt-50 with three experts at 224 pixels, on JPEG files.

    python benchmarks/imagenet_step.py          # a few minutes on two cores, 8 pictures a step

The 40 pictures are synthetic 500x375 JPEG in four class folders. Everything is that of `mdcs train data=folder`: workers decode and cut
one crop per view, the rest of both views is made on the device. Writes benchmarks/results/imagenet_step.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from decode import photograph

COUNTS = {"ant": 20, "bee": 12, "crab": 6, "dolphin": 2}
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="pictures a step, each in two views")
    parser.add_argument("--precision", default="32-true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for label, (name, count) in enumerate(COUNTS.items()):
            (Path(place) / "photos" / name).mkdir(parents=True)
            for number in range(count):
                photograph(100 * label + number).save(Path(place) / "photos" / name / f"{number}.jpg", quality=90)
        words = ["data=folder", f"data.root={place}/photos", "model=resnext50", f"data.batch_size={arguments.batch}", "data.num_workers=2"]
        words += ["trainer.max_epochs=1", "trainer.limit_train_batches=3", f"trainer.precision={arguments.precision}"]
        command = [sys.executable, "-m", "mdcs", "train", *words, f"hydra.run.dir={place}/run"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
        scores = json.loads((Path(place) / "run" / "scores.json").read_text(encoding="utf-8"))
    text = (
        "# Three training steps at ImageNet size\n\n"
        f"`python benchmarks/imagenet_step.py --batch {arguments.batch} --precision {arguments.precision}`, commit {scores['git_commit']}, "
        f"torch {scores['versions']['torch']}, {scores['device']}, {scores['threads']} threads; "
        f"load average {os.getloadavg()[0]:.1f} at the end.\n"
        "A step has so many pictures in two views each; memory is the peak of the whole process.\n\n"
        "| network | experts | pixels | pictures a step | parameters | multiply-adds a picture | peak memory |\n"
        "|---|---|---|---|---|---|---|\n"
        f"| ResNeXt-50 32x4d, reduced | {scores['num_experts']} | 224 | {arguments.batch} | {scores['parameters']:,} | "
        f"{scores['macs_per_picture'] / 1e9:.2f} G | {scores['peak_memory_mib']:,} MiB |\n"
    )
    (Path(__file__).parent / "results" / "imagenet_step.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
