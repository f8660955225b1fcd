"""Small pictures of single episodes in a result's folder: gallery/NUMBER.jpg and gallery/index.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fss_svf.provenance import write_json
from fss_svf.reporting.pictures import EpisodePicture, draw_strip, save_picture

log = logging.getLogger(__name__)
# Pixels of the longer side of each image; an episode is about 15 kB.
_CELL = 160


@dataclass(frozen=True)
class Entry:
    """An episode of the gallery.

    file     its picture in the index's folder: supports, query, truth and prediction side by side
    seed     seed of its run
    number   its number in that run
    classes  names of the classes, way 1 first
    iou      IoU of its foreground, a fraction
    """

    file: str
    seed: int
    number: int
    classes: tuple[str, ...]
    iou: float


def save_gallery(folder: Path, pictures: Sequence[EpisodePicture], seed: int) -> None:
    """Write one JPEG for each episode, then index.json."""
    folder.mkdir(exist_ok=True)
    entries = []
    for picture in pictures:
        name = f"{picture.number:06d}.jpg"
        save_picture(folder / name, draw_strip(picture, _CELL), quality=80)
        entries.append(Entry(name, seed, picture.number, picture.classes, picture.iou))
    write_json(folder / "index.json", {"episodes": [asdict(entry) for entry in entries]})


def read_gallery(folder: Path) -> list[Entry]:
    """The entries whose pictures exist. An index that cannot be read gives none, with a warning."""
    path = folder / "index.json"
    if not path.is_file():
        return []
    try:
        entries = [
            Entry(str(e["file"]), int(e["seed"]), int(e["number"]), tuple(map(str, e["classes"])), float(e["iou"]))
            for e in json.loads(path.read_text())["episodes"]
        ]
    except (ValueError, TypeError, KeyError) as error:
        log.warning("%s: not a readable index of pictures (%s); its pictures are left out", path, error)
        return []
    # The name may not lead out of the folder.
    return [e for e in entries if Path(e.file).name == e.file and (folder / e.file).is_file()]
