"""Size of report.html, seconds to make it and to open it, for 10, 100 and 8142 classes (iNaturalist 2018: 3 test pictures a class, K = 3).

    python benchmarks/report_size.py                 # 3 minutes, 1.5 GB of disk, removed after; needs Chromium

The predictions are synthetic; pictures of 96 pixels are noise, which compresses worse than photographs. "Open" is from navigation to the
first frame after the load event in a headless Chromium, median of 5; "search" and "sort" from the event to the next frame.
Writes benchmarks/results/report_size.md.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the browser and the run folders are the tests'

from browser import browser
from mdcs.data.splits import Pictures
from mdcs.evaluation.agnostic import agnostic
from mdcs.evaluation.predictions import Predictions, classes_to_json
from mdcs.evaluation.scores import scores
from mdcs.reporting import write_report
from run_cases import CONFIG, FACTS, long_tailed

SIZES = {10: 60, 100: 100, 8142: 3}  # classes: test pictures of each
EXPERTS, EPOCHS, CHUNK = 3, 400, 300
NEXT_FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - from))))"


def make(folder: Path, num_classes: int, per_class: int) -> Path:
    """A run folder with synthetic predictions, a few pictures at a time."""
    classes = long_tailed([f"Genus{c // 7} species-{c}" for c in range(num_classes)])
    place, labels = folder / "predictions" / "test", np.arange(num_classes * per_class) % num_classes
    place.mkdir(parents=True)
    shape = (len(labels), EXPERTS, num_classes)
    logits = np.lib.format.open_memmap(place / "logits.npy", "w+", np.float16, shape)
    generator, tilt_KC = torch.Generator().manual_seed(0), torch.linspace(0.7, -0.7, EXPERTS)[:, None] * classes.counts.log()
    for start in range(0, len(labels), CHUNK):
        of = torch.from_numpy(labels[start : start + CHUNK])
        part_NKC = 1.5 * torch.randn(len(of), EXPERTS, num_classes, generator=generator) + tilt_KC
        part_NKC[torch.arange(len(of)), :, of] += 7
        logits[start : start + CHUNK] = (part_NKC - part_NKC.amax(-1, keepdim=True)).half().numpy()
    logits.flush()
    np.save(place / "labels.npy", labels)
    np.save(place / "index.npy", np.arange(len(labels)))
    (place / "paths.txt").write_text("".join(f"val/{n:08}.jpg\n" for n in range(len(labels))))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "classes.json").write_text(classes_to_json(classes, tuple(classes.counts.tolist())))
    predictions = Predictions.read(place)
    content = {"split": "test", "checkpoint": "last", **scores(predictions, classes), **FACTS}
    content["agnostic"] = {"sets": agnostic(predictions, classes) if num_classes <= 100 else []}
    (folder / "scores.json").write_text(json.dumps(content))
    columns = "epoch,train/loss,train/diversity,train/acc,train/confident_many,train/confident_few"
    rows = [f"{e},{5 / e},{3 / e},{1 - 1 / e},{1 - 0.5 / e},{1 - 0.9 / e}" for e in range(1, EPOCHS + 1)]
    (folder / "metrics.csv").write_text("\n".join([columns, *rows]) + "\n")
    return folder


def measure(num_classes: int, per_class: int) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as place, browser(Path(place) / "profile") as tab:
        folder = make(Path(place) / "run", num_classes, per_class)
        images = torch.randint(0, 256, (num_classes * per_class, 3, 96, 96), dtype=torch.uint8) if num_classes <= 100 else None
        paths = (folder / "predictions" / "test" / "paths.txt").read_text().split("\n")[:-1]
        if images is None:
            images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8).expand(len(paths), -1, -1, -1)
        pictures = Pictures(images, torch.zeros(len(paths), dtype=torch.int64), torch.arange(len(paths)), paths)
        started = time.perf_counter()
        page = write_report(folder, pictures)
        made = time.perf_counter() - started
        tab.window(1280)
        opened = statistics.median(tab.open(page) for _ in range(5))
        assert not tab.complaints()
        type_in = "(s => { s.value = 'species-1'; s.dispatchEvent(new Event('input')) })(document.getElementById('search'))"
        sort = "document.querySelectorAll('#class-rows th button')[0].click()"
        frame = "(() => {{ const from = performance.now(); {}; return {} }})()"
        search_ms, sort_ms = (tab(frame.format(what, NEXT_FRAME)) for what in (type_in, sort))
        size = page.stat().st_size / 2**20
    cells = [f"{num_classes:,}", f"{num_classes * per_class:,}", f"{size:.2f}", f"{made:.1f}", f"{opened:.2f}"]
    return f"| {' | '.join(cells)} | {search_ms:.0f} | {sort_ms:.0f} |"


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# report.html: size and time",
        "",
        f"`python benchmarks/report_size.py`, K = {EXPERTS}, {EPOCHS} epochs of curves, at most 24 thumbnails of 96 pixels, Chromium.",
        "",
        "| classes | test pictures | MiB | s to make | s to open | ms to search | ms to sort |",
        "|---|---|---|---|---|---|---|",
        *(measure(*size) for size in SIZES.items()),
        "",
        f"Load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
    ]
    results = Path(__file__).parent / "results" / "report_size.md"
    results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(results.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
