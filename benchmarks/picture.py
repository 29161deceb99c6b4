"""Draws docs/experts.svg from the runs of `methods.py cifar100_ten`: what each expert of MDCS is good at.

python benchmarks/picture.py runs/methods/cifar100_ten
"""

import json
import sys
from pathlib import Path

GROUPS = {"many": "many-shot (500 to 209)", "medium": "medium (135 to 36)", "few": "few-shot (23 to 10)"}
COLOURS = ["#0072b2", "#e69f00", "#cc79a7", "#333333"]  # distinct for colour-blind readers (Okabe and Ito)
WIDTH, HEIGHT, LEFT, TOP, BAR = 760, 300, 56, 52, 40


def bars(values: dict[str, list[float]], seeds: int) -> str:
    """One group of bars per shot group; `values[group]` holds per cent of expert 1, 2, 3 and the ensemble."""
    names = [f"expert {k + 1}" for k in range(len(values["few"]) - 1)] + ["mean of the experts"]
    floor, scale = HEIGHT - 44, (HEIGHT - 44 - TOP) / 100
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" font-size="13">',
        "<title>Test accuracy of each expert of MDCS by number of training pictures</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in range(0, 101, 25):
        y = floor - tick * scale
        parts.append(
            f'<path d="M{LEFT} {y}H{WIDTH - 16}" stroke="#ddd"/><text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick} %</text>'
        )
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        parts.append(f'<rect x="{LEFT + 110 * i}" y="12" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 110 * i + 18}" y="23">{name}</text>')
    parts.append(f'<text x="{WIDTH - 16}" y="23" text-anchor="end" fill="#666">test accuracy, {seeds} seeds</text>')
    for g, (group, label) in enumerate(GROUPS.items()):
        x = LEFT + 30 + g * 235
        for k, value in enumerate(values[group]):
            height = value * scale
            left = x + k * (BAR + 6)
            parts.append(f'<rect x="{left}" y="{floor - height:.1f}" width="{BAR}" height="{height:.1f}" fill="{COLOURS[k]}"/>')
            parts.append(f'<text x="{left + BAR / 2}" y="{floor - height - 5:.1f}" text-anchor="middle">{value:.0f}</text>')
        parts.append(f'<text x="{x + 2 * BAR + 9}" y="{floor + 22}" text-anchor="middle">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    folders = sorted(Path(sys.argv[1]).glob("mdcs-*"))
    scores = [json.loads((folder / "scores.json").read_text()) for folder in folders]
    values = {}
    for group in GROUPS:
        key = f"accuracy_{group}"
        values[group] = [100 * sum(of["experts"][k][key] for of in scores) / len(scores) for k in range(3)]
        values[group].append(100 * sum(of[key] for of in scores) / len(scores))
    (Path(__file__).parents[1] / "docs" / "experts.svg").write_text(bars(values, len(scores)), encoding="utf-8")


if __name__ == "__main__":
    main()
