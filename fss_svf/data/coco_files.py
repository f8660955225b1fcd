"""The image files of a COCO dataset: those in the folder, and the names of those that are not NAME.jpg."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fss_svf.data.coco_annotations import AnnotatedImage
from fss_svf.data.dataset import Split, absent
from fss_svf.data.file_names import plain
from fss_svf.errors import DataError
from fss_svf.files import appearing_whole


@dataclass(frozen=True)
class CocoFiles(Split):
    """A split whose images end in .jpg but for some. files: the paths of these below the image folder, by name."""

    files: Mapping[str, str]

    def image_path(self, number: int) -> Path:
        name = str(self.index.names[number])
        return self.images / self.files.get(name, f"{name}{self.image_ending}")


def files_there(images: Path, listed: Sequence[str]) -> list[str | None]:
    """Each listed path as the folder has it, None where it has not.

    An accented letter is one character or two, by the machine that wrote the name (macOS: two): both are the same name.
    """
    missing = set(absent(images, listed, ""))
    same: dict[str, str] = {}
    if any(not file.isascii() for file in missing):
        there = (path.relative_to(images).as_posix() for path in images.rglob("*"))
        same = {plain(file): file for file in there}
    return [same.get(plain(file)) if file in missing else file for file in listed]


def write_file_names(folder: Path, made_from: str, items: Sequence[AnnotatedImage]) -> None:
    """Keep the files that are not NAME.jpg, for the index of this fingerprint; those of other indexes go."""
    path = _path(folder, made_from)
    others = {image.stem: image.file for image in items if image.file != f"{image.stem}.jpg"}
    for old in set(folder.glob("files-*.json")) - ({path} if others else set()):
        old.unlink(missing_ok=True)
    if others and not (path.exists() and read_file_names(folder, made_from) == others):
        with appearing_whole(path) as unfinished:
            unfinished.write_text(json.dumps(others))


def read_file_names(folder: Path, made_from: str) -> dict[str, str]:
    """What write_file_names kept; empty where all files are NAME.jpg. Raises DataError."""
    path = _path(folder, made_from)
    try:
        names: dict[str, str] = json.loads(path.read_text())
        return names
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run 'fss-svf prepare'") from None


def _path(folder: Path, made_from: str) -> Path:
    return folder / f"files-{made_from}.json"
