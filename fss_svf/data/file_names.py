"""The files of a folder: which are images, and which name goes with which, whatever a system makes of it."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fss_svf.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def plain(name: str) -> str:
    """A name in one spelling: some systems write an accent as a letter of its own."""
    return unicodedata.normalize("NFC", name)


def image_files(folder: Path, endings: Iterable[str] = IMAGE_ENDINGS) -> list[Path]:
    """The files of `folder` itself with one of the endings in small or capital letters, by name, without hidden ones.

    Links whose file is missing are among them. Raises DataError for a name that is not UTF-8.
    """
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in endings or entry.is_dir():
            continue
        found.append(require_utf8(folder / entry.name))
    return found


def require_utf8(path: Path) -> Path:
    """The path. Raises DataError where it is not UTF-8: no table, log or index can hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(f"{shown}: the name is not UTF-8; rename it (convmv does so for whole folders)") from None
    return path


def in_subfolders(folder: Path) -> str:
    """'; the images in sub/ ...' for the first folder in `folder` that holds images, or an empty string.

    A folder of the name masks is not meant.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        meant = entry.is_dir() and not entry.name.startswith(".") and entry.name != "masks"
        if meant and (images := image_files(Path(entry.path))):
            return f"; the {len(images):,} images in {entry.name}/ are not read: move them up, and their masks"
    return ""


def present(folder: Path) -> set[Path]:
    """What lies in `folder`, without links whose file is missing; empty where there is no folder."""
    if not folder.is_dir():
        return set()
    return {folder / e.name for e in os.scandir(folder) if not e.is_symlink() or os.path.exists(e.path)}
