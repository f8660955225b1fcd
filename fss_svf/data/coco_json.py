"""Parsing COCO's instances JSON, in a fraction of the memory that its lists of floats would take.

COCO 2014's would be more than 2 GB of Python's lists and floats; each entry is packed as soon as the parser has it.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fss_svf.errors import DataError


class PackedAnnotation(NamedTuple):
    """An entry of "annotations" as it stands in the file, None for what it lacks; but its polygons are packed.

    segmentation: where it is lists of numbers, a tuple of the bytes of each as float64.
    """

    id: Any
    image_id: Any
    category_id: Any
    crowd: Any
    segmentation: Any


class PackedImage(NamedTuple):
    """An entry of "images" as it stands in the file, None for what it lacks. coco_url: kept without a file_name only."""

    id: Any
    file_name: Any
    coco_url: Any
    height: Any
    width: Any


def parse(path: Path) -> tuple[Any, str]:
    """The content of a JSON file, its entries packed, and the digest of its bytes. Raises DataError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights and the disk") from None
    digest = hashlib.sha256(raw).hexdigest()
    if raw.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise DataError(f"{path}: a compressed file; unpack it")
    try:
        text = raw.decode(json.detect_encoding(raw))
        del raw  # half of the memory, while the other half is parsed
        return json.loads(text, object_hook=packed), digest
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for a COCO instances file; get another file") from None
    except ValueError as error:
        what_to_do = "half a download? get it anew" if _is_cut_off(error) else "mend it, or export it anew in UTF-8"
        raise DataError(f"{path}: not a whole JSON file ({error}); {what_to_do}") from None


def packed(entry: dict[str, Any]) -> Any:
    """What the parser is to keep of a JSON object (its object_hook): far less, of an annotation and of an image."""
    get = entry.get
    if "segmentation" in entry or ("category_id" in entry and "image_id" in entry):
        drawn = _packed_polygons(get("segmentation"))
        return PackedAnnotation(get("id"), get("image_id"), get("category_id"), get("iscrowd"), drawn)
    if "file_name" in entry or "coco_url" in entry:
        name = get("file_name")
        return PackedImage(get("id"), name, None if name else get("coco_url"), get("height"), get("width"))
    if isinstance(get("counts"), list):
        try:
            return {**entry, "counts": np.array(entry["counts"])}
        except (ValueError, OverflowError):
            return entry  # drawing refuses it by the annotation's id
    return entry


def _packed_polygons(segmentation: Any) -> Any:
    if not isinstance(segmentation, list):
        return segmentation
    try:
        return tuple([array("d", polygon).tobytes() for polygon in segmentation])
    except (TypeError, OverflowError):
        return segmentation


def _is_cut_off(error: ValueError) -> bool:
    """Whether a text ends before it is whole JSON; a file that is wrong elsewhere is no half download."""
    if isinstance(error, UnicodeDecodeError):
        return error.reason in ("unexpected end of data", "truncated data")
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = error.doc[error.pos :].strip()
    # The rest may be half a word, as "tru", or half an escape of a string.
    return "Unterminated" in error.msg or (len(rest) < 6 and not set(rest) & set("]}"))
