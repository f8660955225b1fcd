"""File names of a folder: which are images, and names in one Unicode spelling."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fss_svf.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def plain(name: str) -> str:
    """A name in one spelling (NFC): some systems store an accent as a separate character."""
    return unicodedata.normalize("NFC", name)


def image_files(folder: Path, endings: Iterable[str] = IMAGE_ENDINGS) -> list[Path]:
    """The files directly in `folder` with one of the endings in any case, sorted by name, without hidden ones.

    Broken links are included. Raises DataError for a name that is not UTF-8.
    """
    files = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in endings or entry.is_dir():
            continue
        files.append(require_utf8(folder / entry.name))
    return files


def named(folder: Path, endings: Iterable[str]) -> dict[str, str]:
    """File names of `folder` by their name without ending, in one spelling. Raises DataError for two of one name."""
    files: dict[str, str] = {}
    for path in image_files(folder, endings) if folder.is_dir() else ():
        other = files.setdefault(plain(path.stem), path.name)
        if other != path.name:
            raise DataError(f"{folder}: both {other} and {path.name} are called {plain(path.stem)}; rename one")
    return files


def require_utf8(path: Path) -> Path:
    """The path. Raises DataError if it is not UTF-8, since tables, logs and indexes cannot store it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        printable = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(f"{printable}: the name is not UTF-8; rename it (convmv does so for whole folders)") from None
    return path


def in_subfolders(folder: Path) -> str:
    """'; the images in sub/ ...' for the first subfolder of `folder` with images, or an empty string.

    A subfolder named masks is ignored.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        candidate = entry.is_dir() and not entry.name.startswith(".") and entry.name != "masks"
        if candidate and (images := image_files(Path(entry.path))):
            return f"; the {len(images):,} images in {entry.name}/ are not read: move them up, and their masks"
    return ""


def present(folder: Path) -> set[Path]:
    """The entries of `folder` without broken links; empty if there is no folder."""
    if not folder.is_dir():
        return set()
    return {folder / e.name for e in os.scandir(folder) if not e.is_symlink() or os.path.exists(e.path)}
