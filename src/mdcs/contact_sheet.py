"""A contact sheet: pictures of some classes as they are evaluated, and the views that they are trained on."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mdcs.augment.views import Augment
from mdcs.data.splits import Pictures
from mdcs.errors import UserError
from mdcs.types import Batch, Classes

VIEWS = ("weak", "weak", "strong", "strong")
COLUMNS = ("as evaluated", *VIEWS)
ROWS = 8
TRIES = 5  # pictures of a class, if some cannot be read
CELL = 96  # pixels, to which smaller pictures are enlarged at least
MARGIN, LINE, LABELS = 8, 18, 170  # pixels: around pictures, of a line of text, of the column of class names


def example_rows(pictures: Pictures, classes: Classes) -> list[int]:
    """Rows of readable pictures, one for each of up to 8 classes spread evenly from the most to the least frequent."""
    by_count = classes.counts.argsort(descending=True, stable=True)
    rows = []
    for place in np.linspace(0, len(classes) - 1, min(ROWS, len(classes))).round().astype(int):
        for row in (pictures.labels == by_count[place]).nonzero()[:TRIES, 0].tolist():
            try:
                pictures.plain(torch.tensor([row]))
            except UserError:
                continue
            rows.append(row)
            break
    return rows


def contact_sheet(pictures: Pictures, rows: list[int], augment: Augment, classes: Classes, seed: int) -> Image.Image:
    """One row a picture: what evaluation sees, two weak and two strong views, all as the network gets them but for the normalisation.

    `augment` must have been made for as many pictures as there are `rows`.
    """
    chosen, own = torch.tensor(rows), torch.arange(len(rows))
    if isinstance(pictures.images, Tensor):
        stored_VB3HW = pictures.images[chosen][None]
    else:
        stored_VB3HW = pictures.images.random(chosen, chosen, 0, seed, len(VIEWS))
    views_VB3HW = augment(Batch(stored_VB3HW, pictures.labels[chosen], own), VIEWS, len(classes), 0).images
    columns = torch.cat([augment.plain(pictures.plain(chosen))[None], views_VB3HW])
    mean, std = (torch.tensor(values)[:, None, None] for values in (augment.mean, augment.std))
    pixels = ((columns * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 0, 3, 4, 2).contiguous().numpy()
    counts = {label: int(classes.counts[label]) for label in pictures.labels[chosen].tolist()}
    return _drawn(pixels, [f"{classes.names[label]}\n{n:,} picture{'s' if n > 1 else ''}" for label, n in counts.items()])


def _drawn(pixels: np.ndarray, texts: list[str]) -> Image.Image:
    """`pixels` (rows, columns, H, W, 3) uint8 in a grid with words around."""
    rows, columns, height, width = pixels.shape[:4]
    larger = -(-CELL // max(height, width))
    width, height = width * larger, height * larger
    sheet = Image.new("RGB", (LABELS + columns * (width + MARGIN), LINE + MARGIN + rows * (height + MARGIN)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(font_for("".join(texts)), 12)
    for column, name in enumerate(COLUMNS):
        draw.text((LABELS + column * (width + MARGIN), MARGIN / 2), name, "black", font)
    for row, text in enumerate(texts):
        top = LINE + MARGIN + row * (height + MARGIN)
        for line, words in enumerate(text.split("\n")):
            draw.text((MARGIN, top + line * LINE), _shortened(words, draw, font), "black" if line == 0 else "gray", font)
        for column in range(columns):
            picture = Image.fromarray(pixels[row, column]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (LABELS + column * (width + MARGIN), top))
    return sheet


def font_for(words: str) -> Path:
    """The file of the font that matplotlib brings (Pillow's own lacks all but ASCII), or of an installed one that has letters it lacks."""
    import matplotlib
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    ours = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    lacking = {ord(letter) for letter in words if letter.isprintable()} - FT2Font(str(ours)).get_charmap().keys()
    for installed in sorted(findSystemFonts()) if lacking else ():
        try:
            if lacking <= FT2Font(installed).get_charmap().keys():
                return Path(installed)
        except (OSError, RuntimeError):
            continue  # a damaged font, or one of bitmaps
    return ours


def _shortened(words: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The words, cut where they would run into the pictures."""
    if draw.textlength(words, font) <= LABELS - 2 * MARGIN:
        return words
    while words and draw.textlength(f"{words}…", font) > LABELS - 2 * MARGIN:
        words = words[:-1]
    return f"{words}…"
