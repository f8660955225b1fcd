"""What an instances JSON in COCO's format holds: classes, images, and the instances of each."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fss_svf.data.coco_fields import Id, as_crowd, as_id, as_side, image_file, shown
from fss_svf.data.coco_json import PackedAnnotation, PackedImage, parse
from fss_svf.errors import DataError, listing

log = logging.getLogger(__name__)

_POINT = 16  # bytes of a packed polygon's x and y


class Instance(NamedTuple):
    """One annotated object.

    segmentation: a tuple of polygons of three points or more, each the bytes of float64 x, y, x, y, ... (a quarter of the
    memory of a list of floats); or COCO's run lengths, a dict that drawing checks.
    """

    number: int  # of its class
    crowd: bool
    segmentation: Any
    annotation: int | str  # its id, or where that is no number, what messages call it


class AnnotatedImage(NamedTuple):
    """An image of the file that has a mask, and its instances in the file's order.

    file: its path below the image folder. stem: the same without the ending, which is the index's name of the image.
    """

    stem: str
    file: str
    height: int
    width: int
    instances: list[Instance]


class Annotations:
    """An instances JSON: the digest of its bytes, the class names, and the annotated images in the file's order.

    Annotations without a mask or of images that are not listed are left out, with a log line. Raises DataError that
    names the entry for what cannot be read.
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
            found = _instances(listed["annotations"], number, images, path)
            self.images = [
                AnnotatedImage(
                    _stem(image.file),
                    image.file,
                    _side(image.height, key, "height"),
                    _side(image.width, key, "width"),
                    found[key],
                )
                for key, image in images.items()
                if key in found
            ]
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None

    def _number_categories(self, categories: list[Any]) -> dict[Id, int]:
        """Class numbers 1..C by category id, numbers before texts."""
        names: dict[Id, str] = {}
        ids: dict[str, Id] = {}
        for place, category in enumerate(categories, 1):
            if not isinstance(category, dict):
                raise ValueError(f'entry {place} of "categories" is {shown(category)}; expected an id and a name')
            key, name = as_id(category.get("id")), category.get("name")
            if key is None:
                raise ValueError(f'entry {place} of "categories": id is {shown(category.get("id"))}; give it one')
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"category {key!r}: name is {shown(name)}; give it a name")
            other = key if key in names else ids.get(name)
            if other is not None:
                raise ValueError(
                    f"two categories of one id or name: {other!r}, named {names[other]!r}, and {key!r}, named {name!r}; "
                    "mend the file"
                )
            names[key], ids[name] = name, key
        ordered = sorted(names, key=lambda key: (isinstance(key, str), key))
        if not 1 <= len(ordered) <= 254:
            raise ValueError(f"{len(ordered)} categories; label PNGs hold 1 to 254 classes")
        self.class_names = tuple(names[key] for key in ordered)
        return {key: number for number, key in enumerate(ordered, 1)}


class _NamedImage(NamedTuple):
    file: str
    height: Any
    width: Any


def _section(content: Any, key: str) -> list[Any]:
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "no object"
        raise ValueError(f'{kind}; a COCO instances file is an object of "images", "annotations" and "categories"')
    if key not in content:
        raise ValueError(
            f'no "{key}", only {listing(map(shown, content))}; a COCO instances file has "images", "annotations" and '
            '"categories": get that one'
        )
    if not isinstance(content[key], list):
        raise ValueError(f'"{key}" is {shown(content[key])}; expected a list')
    section: list[Any] = content[key]
    return section


def _listed_images(listed: list[Any]) -> dict[Id, _NamedImage]:
    """The images by id. One that is repeated word for word counts once."""
    images: dict[Id, _NamedImage] = {}
    ids: dict[str, Id] = {}
    for place, image in enumerate(listed, 1):
        if not isinstance(image, PackedImage):
            named = f"image {shown(image.get('id'))}" if isinstance(image, dict) else f'entry {place} of "images"'
            raise ValueError(f"{named}: no file_name; give it the name of its file below the image folder")
        key = as_id(image.id)
        if key is None:
            raise ValueError(f'entry {place} of "images": id is {shown(image.id)}; give it one')
        try:
            file = image_file(image.file_name, image.coco_url)
        except ValueError as error:
            raise ValueError(f"image {key!r}: {error}") from None
        new = _NamedImage(file, image.height, image.width)
        known, other = images.setdefault(key, new), ids.setdefault(_stem(file), key)
        if known != new:
            raise ValueError(f"two images of id {key!r}, {known.file} and {file}, or of two sizes; mend the file")
        if other != key:
            one = images[other].file
            raise ValueError(
                f"{file} is listed as two images, ids {other!r} and {key!r}; join them"
                if one == file
                else f"images {other!r} and {key!r}, {one} and {file}, differ in their ending only; rename one"
            )
    return images


def _instances(
    annotations: list[Any], number: dict[Id, int], images: dict[Id, _NamedImage], path: Path
) -> dict[Id, list[Instance]]:
    """The instances of each image that has one. Logs what is left out, and raises ValueError where nothing is left."""
    found: dict[Id, list[Instance]] = defaultdict(list)
    without_mask, of_no_image, shortened = _LeftOut(), _LeftOut(), _LeftOut()
    for place, annotation in enumerate(annotations, 1):
        if not isinstance(annotation, PackedAnnotation):
            told = annotation.get("id") if isinstance(annotation, dict) else None
            raise ValueError(
                f"{_called(told, place)}: no segmentation, or no image_id and category_id; this is not a file of "
                "instances (captions, panoptic or the like): get that one"
            )
        image_id, category_id = as_id(annotation.image_id), as_id(annotation.category_id)
        if image_id not in images:
            if image_id is None:
                raise ValueError(
                    f"{_called(annotation.id, place)}: image_id is {shown(annotation.image_id)}; give it that of its image"
                )
            of_no_image.add(annotation.id, place, f"of image {shown(image_id)}")
            continue
        if category_id not in number:
            raise ValueError(
                f"{_called(annotation.id, place)}: category_id is {shown(annotation.category_id)}, which "
                f'"categories" does not list ({listing(map(shown, number))}); list it there, or remove the annotation'
            )
        try:
            crowd, segmentation = as_crowd(annotation.crowd), _polygons_or_runs(annotation.segmentation)
        except ValueError as error:
            raise ValueError(f"{_called(annotation.id, place)}: {error}") from None
        if not segmentation:
            without_mask.add(annotation.id, place, f"of {images[image_id].file}")
            continue
        if len(segmentation) < len(annotation.segmentation):
            shortened.add(annotation.id, place, f"of {images[image_id].file}")
        known = annotation.id if type(annotation.id) is int else _called(annotation.id, place)
        found[image_id].append(Instance(number[category_id], crowd, segmentation, known))
    if not annotations:
        raise ValueError("no annotations; a file of images alone cannot be used")
    total = len(annotations)
    if not found and of_no_image.count == total:
        raise ValueError(f'"images" lists the image of no annotation, first {of_no_image.first}; mend the image_ids')
    if not found:
        raise ValueError(
            f"no annotation has a mask, first {without_mask.first}: boxes alone cannot be used; export polygons or run "
            'lengths as "segmentation"'
        )
    without_mask.log(path, total, "have no segmentation with an area and are left out, what they show is background")
    of_no_image.log(path, total, 'are of images that "images" does not list and are left out')
    shortened.log(path, total, "have polygons of less than three points, which have no area and are left out")
    return found


class _LeftOut:
    """How many annotations were left out for one reason, and which was the first."""

    count = 0
    first = ""

    def add(self, annotation_id: Any, place: int, where: str) -> None:
        self.first = self.first or f"{_called(annotation_id, place)} {where}"
        self.count += 1

    def log(self, path: Path, total: int, why: str) -> None:
        if self.count:
            log.warning("%s: %s of %s annotations %s; first %s", path, f"{self.count:,}", f"{total:,}", why, self.first)


def _polygons_or_runs(segmentation: Any) -> Any:
    """The segmentation without polygons that have no area; empty where there is none. Raises ValueError."""
    if type(segmentation) is tuple:
        if all(len(polygon) >= 3 * _POINT and not len(polygon) % _POINT for polygon in segmentation):
            return segmentation
        odd = next((len(polygon) // 8 for polygon in segmentation if len(polygon) % _POINT), None)
        if odd is not None:
            raise ValueError(
                f"segmentation holds a polygon of {odd} numbers; x and y take turns: mend it, or remove the annotation"
            )
        if len(segmentation) >= 3 and all(len(polygon) == _POINT for polygon in segmentation):
            raise ValueError("segmentation is a list of points [x, y]; write a polygon as one list [[x, y, x, y, ...]]")
        return tuple(polygon for polygon in segmentation if len(polygon) >= 3 * _POINT)
    if segmentation is None or isinstance(segmentation, dict):
        return segmentation
    raise ValueError(
        f"segmentation is {shown(segmentation)}; expected polygons [[x, y, x, y, ...], ...] of numbers, or run lengths "
        '{"size": [height, width], "counts": ...}'
    )


def _called(annotation_id: Any, place: int) -> str:
    return f'entry {place} of "annotations"' if annotation_id is None else f"annotation {shown(annotation_id)}"


def _side(value: Any, image_id: Id, key: str) -> int:
    side = as_side(value)
    if side is None:
        raise ValueError(f"image {image_id!r}: {key} is {shown(value)}; expected its {key} in pixels")
    return side


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))
