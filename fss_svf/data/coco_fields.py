"""Reads fields of COCO's format as other tools write them. Errors are ValueErrors."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from reprlib import Repr
from typing import Any

from fss_svf.data.voc import IMAGE_ENDINGS

# "007" is a text, because of its leading zeros. The limit avoids slow conversions of many digits.
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
_CONTROL = re.compile(r"[\x00-\x1f]")

Id = int | str


def short_repr(value: Any) -> str:
    """A value for a message, on one line and shortened."""
    short = Repr()
    short.maxstring, short.maxother = 120, 60
    return short.repr(value)


def as_id(value: Any) -> Id | None:
    """An id; 80, 80.0 and "80" are the same. None for a value that is no id: null, a boolean, a fraction, a list."""
    if type(value) is int:  # the usual case
        return value
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value) else value or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def as_side(value: Any) -> int | None:
    """A height or width, in the forms of an id. None if it is no whole number >= 1."""
    side = as_id(value)
    return side if isinstance(side, int) and side >= 1 else None


def as_crowd(value: Any) -> bool:
    """iscrowd: 0, 1, false or true, in the forms of an id; null is 0."""
    if value is None or isinstance(value, bool):
        return bool(value)
    number = as_id(value)
    if number not in (0, 1):
        raise ValueError(f"iscrowd is {short_repr(value)}; expected 0 or 1")
    return number == 1


def image_file(file_name: Any, url: Any) -> str:
    """The path of an image below the image folder, with "/" between folders.

    Backslashes, as on Windows, are converted. Without a file_name the last part of coco_url is used (LVIS).
    """
    if file_name in (None, "") and isinstance(url, str):
        file_name = url.rpartition("/")[2]
    if not isinstance(file_name, str) or not file_name:
        raise ValueError(f"file_name is {short_repr(file_name)}; expected the name of a file below the image folder")
    path = PurePosixPath(file_name.replace("\\", "/"))
    if "://" in file_name or path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", file_name):
        raise ValueError(
            f"file_name {short_repr(file_name)} is not a path below the image folder; write it relative to that"
        )
    if path.suffix.lower() not in IMAGE_ENDINGS:
        raise ValueError(
            f"file_name {short_repr(file_name)} does not end in one of {', '.join(IMAGE_ENDINGS)}; convert it"
        )
    if _CONTROL.search(file_name) or re.search("[\ud800-\udfff]", file_name):
        raise ValueError(
            f"file_name {short_repr(file_name)} contains characters that are not allowed in file names; rename it"
        )
    return str(path)
