"""Parses COCO's instances JSON in little memory.

As Python lists and floats, COCO 2014 would take more than 2 GB. Each entry is packed as soon as it is parsed.
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
    """An entry of "annotations" with the file's values, None for missing ones, and packed polygons.

    segmentation: lists of numbers become a tuple with the float64 bytes of each list.
    """

    id: Any
    image_id: Any
    category_id: Any
    crowd: Any
    segmentation: Any


class PackedImage(NamedTuple):
    """An entry of "images" with the file's values, None for missing ones. coco_url: only without a file_name."""

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
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from None
    digest = hashlib.sha256(raw).hexdigest()
    if raw.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise DataError(f"{path}: a compressed file; unpack it")
    try:
        text = raw.decode(json.detect_encoding(raw))
        del raw  # frees half of the memory during parsing
        return json.loads(text, object_hook=packed), digest
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for a COCO instances file; use another file") from None
    except ValueError as error:
        what_to_do = (
            "half a download? get it again" if _is_cut_off(error) else "correct it, or export it again in UTF-8"
        )
        raise DataError(f"{path}: not a complete JSON file ({error}); {what_to_do}") from None


def packed(entry: dict[str, Any]) -> Any:
    """The object_hook of the parser: packs annotations and images, and leaves other objects as they are."""
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
            return entry  # drawing refuses it and names the annotation
    return entry


def _packed_polygons(segmentation: Any) -> Any:
    if not isinstance(segmentation, list):
        return segmentation
    try:
        return tuple([array("d", polygon).tobytes() for polygon in segmentation])
    except (TypeError, OverflowError):
        return segmentation


def _is_cut_off(error: ValueError) -> bool:
    """Whether the text is JSON that ends too early, as after half a download, rather than wrong elsewhere."""
    if isinstance(error, UnicodeDecodeError):
        return error.reason in ("unexpected end of data", "truncated data")
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = error.doc[error.pos :].strip()
    # The rest may be part of a word, such as "tru", or of an escape in a string.
    return "Unterminated" in error.msg or (len(rest) < 6 and not set(rest) & set("]}"))
