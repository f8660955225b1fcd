"""Reading COCO's instances JSON, in a fraction of the memory that its lists of floats would take."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fss_svf.errors import DataError


class Instance(NamedTuple):
    """One annotated object.

    segmentation: a tuple of polygons, each the bytes of float64 x, y, x, y, ... (a quarter of the memory of a list of
    floats); or COCO's run lengths, a dict; or whatever else the file holds, which drawing refuses.
    """

    number: int  # of its class
    crowd: bool
    segmentation: Any


class AnnotatedImage(NamedTuple):
    """An image of the file that has annotations, and its instances in the file's order."""

    stem: str
    height: int
    width: int
    instances: list[Instance]


class Annotations:
    """An instances JSON: the digest of its bytes, the class names, and the annotated images in the file's order.

    COCO 2014's would be more than 2 GB of Python's lists and floats; each annotation is packed as soon as the parser has
    it. Raises DataError for any other file.
    """

    digest: str
    class_names: tuple[str, ...]
    images: list[AnnotatedImage]

    def __init__(self, path: Path) -> None:
        try:
            content = self._parse(path)
            number = self._number_categories(content["categories"], path)
            images = _listed_images(content["images"], path)
            found: dict[Any, list[Instance]] = defaultdict(list)
            for annotation in content["annotations"]:
                if not isinstance(annotation, _Annotation):
                    raise ValueError("an annotation without a segmentation")
                if annotation.image_id not in images:
                    raise ValueError(f'an annotation of image {annotation.image_id!r}, which "images" does not list')
                if annotation.category_id not in number:
                    raise ValueError(
                        f'an annotation of category {annotation.category_id!r}, which "categories" does not list'
                    )
                found[annotation.image_id].append(
                    Instance(number[annotation.category_id], annotation.crowd, annotation.segmentation)
                )
            for key in found:
                if not all(isinstance(side, int) for side in (images[key].height, images[key].width)):
                    raise ValueError(f"image {key!r} without height and width")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: not a whole COCO instances file ({type(error).__name__}: {error}); half a download? get it anew"
            ) from None
        if not found:
            raise DataError(f"{path}: no annotations; a file of images alone cannot be used")
        self.images = [
            AnnotatedImage(image.file_name, image.height, image.width, found[key])
            for key, image in images.items()
            if key in found
        ]

    def _parse(self, path: Path) -> Any:
        raw = path.read_bytes()
        self.digest = hashlib.sha256(raw).hexdigest()
        text = raw.decode(json.detect_encoding(raw))
        del raw  # half of the memory, while the other half is parsed
        return json.loads(text, object_hook=_packed)

    def _number_categories(self, categories: Iterable[dict[str, Any]], path: Path) -> dict[Any, int]:
        """Class numbers 1..C by category id."""
        ordered = sorted(categories, key=lambda category: category["id"])
        for key in ("id", "name"):
            seen: dict[Any, Any] = {}
            for category in ordered:
                other = seen.setdefault(category[key], category)
                if other is not category:
                    raise DataError(
                        f"{path}: two categories of {key} {category[key]!r} (ids {other['id']!r} and {category['id']!r}, "
                        f"names {other['name']!r} and {category['name']!r}); mend the file"
                    )
        self.class_names = tuple(category["name"] for category in ordered)
        if not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("a category without a name")
        if not 1 <= len(ordered) <= 254:
            raise DataError(f"{path}: {len(ordered)} categories; label PNGs hold 1 to 254 classes")
        return {category["id"]: i for i, category in enumerate(ordered, 1)}


class _Annotation(NamedTuple):
    image_id: Any
    category_id: Any
    crowd: bool
    segmentation: Any


class _ListedImage(NamedTuple):
    id: Any
    file_name: Any
    height: Any
    width: Any


def _packed(entry: dict[str, Any]) -> Any:
    """What the parser is to keep of a JSON object (its object_hook): far less, of an annotation and of an image."""
    if "segmentation" in entry:
        drawn = _packed_polygons(entry["segmentation"])
        return _Annotation(entry["image_id"], entry["category_id"], bool(entry.get("iscrowd", 0)), drawn)
    if "file_name" in entry:
        return _ListedImage(entry["id"], entry["file_name"], entry.get("height"), entry.get("width"))
    if isinstance(entry.get("counts"), list):
        return {**entry, "counts": np.array(entry["counts"])}
    return entry


def _packed_polygons(segmentation: Any) -> Any:
    if not isinstance(segmentation, list):
        return segmentation
    try:
        return tuple([array("d", polygon).tobytes() for polygon in segmentation])
    except (TypeError, OverflowError):
        return segmentation  # drawing it will tell which image it belongs to


def _listed_images(listed: Iterable[Any], path: Path) -> dict[Any, _ListedImage]:
    """The images by id, file_name being the index's name. One that is repeated word for word counts once."""
    images: dict[Any, _ListedImage] = {}
    ids: dict[str, Any] = {}
    for image in listed:
        if not isinstance(image, _ListedImage):
            raise ValueError("an image without a file_name")
        named = image._replace(file_name=image_name(image.file_name, path))
        known, other = images.setdefault(image.id, named), ids.setdefault(named.file_name, image.id)
        if known != named:
            raise DataError(
                f"{path}: two images of id {image.id!r}, {known.file_name}.jpg and {named.file_name}.jpg, or of two "
                "sizes; mend the file"
            )
        if other != image.id:
            raise DataError(
                f"{path}: {named.file_name}.jpg is listed as two images, ids {other!r} and {image.id!r}; join them"
            )
    return images


def image_name(file_name: str, annotations: Path) -> str:
    """The index's name of an image: its path below the image folder, without the ending. Raises DataError."""
    path = PurePosixPath(file_name)
    if path.suffix != ".jpg" or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{annotations}: image {file_name!r}: expected a .jpg below the image folder; rename it")
    return str(path.with_suffix(""))
