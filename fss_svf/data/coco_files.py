"""The image files of a COCO dataset, and the names of those that are not NAME.jpg."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fss_svf.data.coco_annotations import AnnotatedImage
from fss_svf.data.dataset import Split, absent
from fss_svf.data.file_names import plain
from fss_svf.errors import DataError
from fss_svf.files import atomic_write


@dataclass(frozen=True)
class CocoFiles(Split):
    """A split whose images end in .jpg, with exceptions. files: paths of the exceptions below the image folder, by name."""

    files: Mapping[str, str]

    def image_path(self, number: int) -> Path:
        name = str(self.index.names[number])
        return self.images / self.files.get(name, f"{name}{self.image_ending}")


def existing_files(images: Path, listed: Sequence[str]) -> list[str | None]:
    """Each listed path in the folder's spelling; None if it does not exist.

    Some systems write an accented letter as two characters (macOS). Both forms are the same name.
    """
    missing = set(absent(images, listed, ""))
    same: dict[str, str] = {}
    if any(not file.isascii() for file in missing):
        files = (path.relative_to(images).as_posix() for path in images.rglob("*"))
        same = {plain(file): file for file in files}
    return [same.get(plain(file)) if file in missing else file for file in listed]


def write_file_names(folder: Path, made_from: str, items: Sequence[AnnotatedImage]) -> None:
    """Save the names of files that are not NAME.jpg for the index of this fingerprint; delete those of other indexes."""
    path = _path(folder, made_from)
    others = {image.stem: image.file for image in items if image.file != f"{image.stem}.jpg"}
    for old in set(folder.glob("files-*.json")) - ({path} if others else set()):
        old.unlink(missing_ok=True)
    if others and not (path.exists() and read_file_names(folder, made_from) == others):
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(others))


def read_file_names(folder: Path, made_from: str) -> dict[str, str]:
    """The names that write_file_names saved; empty if all files are NAME.jpg. Raises DataError."""
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
