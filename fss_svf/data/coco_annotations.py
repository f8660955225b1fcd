"""Reads an instances JSON in COCO's format: classes, images, and the instances of each image."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fss_svf.data.coco_fields import Id, as_crowd, as_id, as_side, image_file, short_repr
from fss_svf.data.coco_json import PackedAnnotation, PackedImage, parse
from fss_svf.errors import DataError, listing

log = logging.getLogger(__name__)

_POINT = 16  # bytes of a packed polygon's x and y


class Instance(NamedTuple):
    """One annotated object.

    segmentation: a tuple of polygons of three points or more, each the bytes of float64 x, y, x, y, ... (a quarter of the
    memory of a list of floats); or COCO's run lengths, a dict, which is checked when drawn.
    """

    number: int  # class number
    crowd: bool
    segmentation: Any
    annotation: int | str  # its id; a description for messages if that is no number


class AnnotatedImage(NamedTuple):
    """An annotated image and its instances, in the file's order.

    file: its path below the image folder. stem: the path without its ending, which is the image's name in the index.
    """

    stem: str
    file: str
    height: int
    width: int
    instances: list[Instance]


class Annotations:
    """An instances JSON: the digest of its bytes, the class names, and the annotated images in the file's order.

    Annotations without a mask, or of images that are not listed, are left out with a log line. Raises DataError naming
    the entry that cannot be read.
    """

    digest: str
    class_names: tuple[str, ...]
    images: list[AnnotatedImage]

    def __init__(self, path: Path) -> None:
        content, self.digest = parse(path)
        try:
            listed = {key: _section(content, key) for key in ("categories", "images", "annotations")}
            del content
            number = self._number_categories(listed["categories"])
            images = _listed_images(listed["images"])
            instances = _instances(listed["annotations"], number, images, path)
            self.images = [
                AnnotatedImage(
                    _stem(image.file),
                    image.file,
                    _side(image.height, key, "height"),
                    _side(image.width, key, "width"),
                    instances[key],
                )
                for key, image in images.items()
                if key in instances
            ]
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None

    def _number_categories(self, categories: list[Any]) -> dict[Id, int]:
        """Class numbers 1..C by category id; ids that are numbers come before texts."""
        names: dict[Id, str] = {}
        ids: dict[str, Id] = {}
        for number, category in enumerate(categories, 1):
            if not isinstance(category, dict):
                raise ValueError(f'entry {number} of "categories" is {short_repr(category)}; expected an id and a name')
            key, name = as_id(category.get("id")), category.get("name")
            if key is None:
                raise ValueError(f'entry {number} of "categories": id is {short_repr(category.get("id"))}; give it one')
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"category {key!r}: name is {short_repr(name)}; give it a name")
            other = key if key in names else ids.get(name)
            if other is not None:
                raise ValueError(
                    f"two categories have one id or name: {other!r}, named {names[other]!r}, and {key!r}, named {name!r}; "
                    "correct the file"
                )
            names[key], ids[name] = name, key
        ordered = sorted(names, key=lambda key: (isinstance(key, str), key))
        if not ordered:
            raise ValueError('"categories" is empty; list the classes')
        self.class_names = tuple(names[key] for key in ordered)
        return {key: number for number, key in enumerate(ordered, 1)}


class _NamedImage(NamedTuple):
    file: str
    height: Any
    width: Any


def _section(content: Any, key: str) -> list[Any]:
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "not an object"
        raise ValueError(f'{kind}; a COCO instances file is an object with "images", "annotations" and "categories"')
    if key not in content:
        raise ValueError(
            f'no "{key}", only {listing(map(short_repr, content))}; use a COCO instances file, which has "images", '
            '"annotations" and "categories"'
        )
    if not isinstance(content[key], list):
        raise ValueError(f'"{key}" is {short_repr(content[key])}; expected a list')
    section: list[Any] = content[key]
    return section


def _listed_images(listed: list[Any]) -> dict[Id, _NamedImage]:
    """The images by id. An identical repetition counts once."""
    images: dict[Id, _NamedImage] = {}
    ids: dict[str, Id] = {}
    for number, image in enumerate(listed, 1):
        if not isinstance(image, PackedImage):
            what = f"image {short_repr(image.get('id'))}" if isinstance(image, dict) else f'entry {number} of "images"'
            raise ValueError(f"{what}: no file_name; give it the name of its file below the image folder")
        key = as_id(image.id)
        if key is None:
            raise ValueError(f'entry {number} of "images": id is {short_repr(image.id)}; give it one')
        try:
            file = image_file(image.file_name, image.coco_url)
        except ValueError as error:
            raise ValueError(f"image {key!r}: {error}") from None
        new = _NamedImage(file, image.height, image.width)
        earlier, other = images.setdefault(key, new), ids.setdefault(_stem(file), key)
        if earlier != new:
            raise ValueError(f"two images have id {key!r}: {earlier.file} and {file}, or two sizes; correct the file")
        if other != key:
            one = images[other].file
            raise ValueError(
                f"{file} is listed as two images, ids {other!r} and {key!r}; merge them"
                if one == file
                else f"images {other!r} and {key!r}, {one} and {file}, differ only in their ending; rename one"
            )
    return images


def _instances(
    annotations: list[Any], number: dict[Id, int], images: dict[Id, _NamedImage], path: Path
) -> dict[Id, list[Instance]]:
    """The instances of each annotated image. Logs what is left out. Raises ValueError if nothing is left."""
    by_image: dict[Id, list[Instance]] = defaultdict(list)
    without_mask, of_no_image, shortened = _LeftOut(), _LeftOut(), _LeftOut()
    for entry, annotation in enumerate(annotations, 1):
        if not isinstance(annotation, PackedAnnotation):
            given = annotation.get("id") if isinstance(annotation, dict) else None
            raise ValueError(
                f"{_called(given, entry)}: no segmentation, or no image_id and category_id; this is not a file of "
                "instances (captions or panoptic, perhaps): use the instances file"
            )
        image_id, category_id = as_id(annotation.image_id), as_id(annotation.category_id)
        if image_id not in images:
            if image_id is None:
                raise ValueError(
                    f"{_called(annotation.id, entry)}: image_id is {short_repr(annotation.image_id)}; give it its image's id"
                )
            of_no_image.add(annotation.id, entry, f"of image {short_repr(image_id)}")
            continue
        if category_id not in number:
            raise ValueError(
                f"{_called(annotation.id, entry)}: category_id is {short_repr(annotation.category_id)}, "
                f'which "categories" does not list ({listing(map(short_repr, number))}); add it, or remove the annotation'
            )
        try:
            crowd, segmentation = as_crowd(annotation.crowd), _polygons_or_runs(annotation.segmentation)
        except ValueError as error:
            raise ValueError(f"{_called(annotation.id, entry)}: {error}") from None
        if not segmentation:
            without_mask.add(annotation.id, entry, f"of {images[image_id].file}")
            continue
        if len(segmentation) < len(annotation.segmentation):
            shortened.add(annotation.id, entry, f"of {images[image_id].file}")
        name = annotation.id if type(annotation.id) is int else _called(annotation.id, entry)
        by_image[image_id].append(Instance(number[category_id], crowd, segmentation, name))
    if not annotations:
        raise ValueError("no annotations; a file with only images cannot be used")
    total = len(annotations)
    if not by_image and of_no_image.count == total:
        raise ValueError(f'"images" lists the image of no annotation, first {of_no_image.first}; correct the image_ids')
    if not by_image:
        raise ValueError(
            f"no annotation has a mask, first {without_mask.first}: boxes cannot be used without masks; export polygons or "
            'run lengths as "segmentation"'
        )
    without_mask.log(path, total, "have no segmentation with an area and are left out; their objects are background")
    of_no_image.log(path, total, 'are of images that "images" does not list and are left out')
    shortened.log(path, total, "have polygons of less than three points, which have no area and are left out")
    return by_image


class _LeftOut:
    """Counts annotations that were left out for one reason, and keeps the first."""

    count = 0
    first = ""

    def add(self, annotation_id: Any, entry: int, where: str) -> None:
        self.first = self.first or f"{_called(annotation_id, entry)} {where}"
        self.count += 1

    def log(self, path: Path, total: int, why: str) -> None:
        if self.count:
            log.warning("%s: %s of %s annotations %s; first %s", path, f"{self.count:,}", f"{total:,}", why, self.first)


def _polygons_or_runs(segmentation: Any) -> Any:
    """The segmentation without polygons of zero area; may be empty. Raises ValueError."""
    if type(segmentation) is tuple:
        if all(len(polygon) >= 3 * _POINT and not len(polygon) % _POINT for polygon in segmentation):
            return segmentation
        odd = next((len(polygon) // 8 for polygon in segmentation if len(polygon) % _POINT), None)
        if odd is not None:
            raise ValueError(
                f"segmentation has a polygon of {odd} numbers; expected x, y, x, y, ...; correct it or remove the annotation"
            )
        if len(segmentation) >= 3 and all(len(polygon) == _POINT for polygon in segmentation):
            raise ValueError("segmentation is a list of points [x, y]; write a polygon as one list [[x, y, x, y, ...]]")
        return tuple(polygon for polygon in segmentation if len(polygon) >= 3 * _POINT)
    if segmentation is None or isinstance(segmentation, dict):
        return segmentation
    raise ValueError(
        f"segmentation is {short_repr(segmentation)}; expected polygons [[x, y, x, y, ...], ...] of numbers, or run lengths "
        '{"size": [height, width], "counts": ...}'
    )


def _called(annotation_id: Any, entry: int) -> str:
    return f'entry {entry} of "annotations"' if annotation_id is None else f"annotation {short_repr(annotation_id)}"


def _side(value: Any, image_id: Id, key: str) -> int:
    side = as_side(value)
    if side is None:
        raise ValueError(f"image {image_id!r}: {key} is {short_repr(value)}; expected its {key} in pixels")
    return side


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))
