"""What was found, drawn on the photograph: one class, or several with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fss_svf.data.images import PALETTE

COLOUR = (234, 67, 53)  # of the one class
_LONGEST = 16_384  # pixels of an overlay's longer side

Colour = tuple[int, int, int]
# Pillow's own font draws ASCII alone. These come with systems, where Pillow looks for them by name.
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf")
# A line of a legend: the colour of its square, if it has one, and its text.
_Entry = tuple[Colour | None, str]


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB and (H, W) uint8: tinted and outlined where the mask is 1, and grey and dim elsewhere.

    The outline is as wide as a viewer that shows the whole photograph needs it. Of an image with a longer side above
    16,384 the overlay is that long: a JPEG ends at 65,535.
    """
    return _drawn(image, mask, {1: COLOUR})


def overlay_classes(image: np.ndarray, label: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(H, W, 3) uint8 RGB and (H, W) uint8, n on the n-th of `names`: as `overlay`, each class in its colour of the palette.

    A legend below the photograph says which of the classes are there.
    """
    found = [int(n) for n in np.unique(label) if 0 < n <= len(names)]
    shown = _drawn(image, label, {n: colour_of(n) for n in found})
    entries: list[_Entry] = [(colour_of(n), f"{n} {names[n - 1]}") for n in found]
    return _above_legend(shown, entries or [(None, "none of the classes found")])


def colour_of(number: int) -> Colour:
    """The colour of class `number` in the palette of label files (VOC's)."""
    red, green, blue = (int(value) for value in PALETTE[number])
    return red, green, blue


def _drawn(image: np.ndarray, label: np.ndarray, colours: dict[int, Colour]) -> np.ndarray:
    if max(label.shape) > _LONGEST:
        size = [max(1, length * _LONGEST // max(label.shape)) for length in label.shape[::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    dim = cv2.convertScaleAbs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), alpha=0.5, beta=45)
    shown = cv2.cvtColor(dim, cv2.COLOR_GRAY2RGB)
    for number, colour in colours.items():
        inside = (label == number).astype(np.uint8)
        cv2.copyTo(cv2.addWeighted(image, 0.65, np.full_like(image, colour), 0.35, 0), inside, shown)
        outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, outlines, -1, colour, max(2, round(max(inside.shape) / 200)))
    return shown


def _above_legend(picture: np.ndarray, entries: Sequence[_Entry]) -> np.ndarray:
    """The picture on a white sheet, with a row of entries (a square of the colour, a text) below; broken where too wide."""
    letters = min(max(round(max(picture.shape) / 40), 14), 60)
    gap, line = letters // 2, 2 * letters
    font = _font(letters, "".join(text for _, text in entries))
    widths = [gap + letters + gap + round(font.getlength(text)) + gap for _, text in entries]
    width = max(picture.shape[1], *widths)
    places, x, row = [], 0, 0
    for length in widths:
        if x + length > width:
            x, row = 0, row + 1
        places.append((x + gap, row * line))
        x += length
    sheet = Image.new("RGB", (width, picture.shape[0] + (row + 1) * line), "white")
    sheet.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(sheet)
    for (x, y), (colour, text) in zip(places, entries):
        top = picture.shape[0] + y + gap
        if colour is not None:
            draw.rectangle((x, top, x + letters, top + letters), fill=colour)
            x += letters + gap
        draw.text((x, top + letters / 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(sheet)


def _font(size: int, text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own for ASCII, so that pictures are the same on every machine; else one of the system, if it has one."""
    for name in () if text.isascii() else _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
