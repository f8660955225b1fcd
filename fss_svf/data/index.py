"""The index of one split: the pixel area of every class in every image.

Folds, the area rule and the filter of novel classes are queries on it, so a run starts without opening an image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fss_svf.data.identity import FileRecord, changed_file, table
from fss_svf.data.label_values import ABSENT, IGNORE, MOST_IN_IMAGE, is_wide, require_classes
from fss_svf.errors import DataError
from fss_svf.files import atomic_write

FORMAT = 3
_OPTIONAL = ("boxes", "contents", "files", "sources")


@dataclass(frozen=True)
class ImageRow:
    """One image at its preparation: its size, and the pixel area of every class in its label.

    boxes    (class, y0, x0, y1, x1) of every instance drawn, ends exclusive, hidden parts included; () without instances
    content  identity.label_digest of the label; 0 if not known
    files    records of the image's file, of its label, and of the file that the label was made from; () if their changes
             need not be detected
    """

    name: str
    height: int
    width: int
    areas: dict[int, int]
    boxes: tuple[tuple[int, int, int, int, int], ...] = ()
    content: int = 0
    files: tuple[FileRecord, ...] = ()


@dataclass(frozen=True)
class Index:
    """N images by C classes.

    names        (N,) str, the image's file name without its ending, in list order
    sizes        (N, 2) int32, height and width
    areas        (N, C + 1) int32, pixels of class 1..C in the label at its original size; column 0 is unused
    class_names  C names, class 1 first
    fingerprint  identifies the input of the index; a preparation with another fingerprint rebuilds it
    boxes        (M, 6) int32, (image, class, y0, x0, y1, x1) of M instances by ascending image, in drawing order; None
                 without instances
    contents     (N,) int64, a digest of each label's pixels, 0 if not known
    files        (N, R, 4) int64, FileRecords of each image's files; None if there are none
    sources      (S, 4) int64, FileRecords of the files behind all images: lists, class names, an instances JSON
    """

    names: np.ndarray
    sizes: np.ndarray
    areas: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str
    boxes: np.ndarray | None = None
    contents: np.ndarray | None = None
    files: np.ndarray | None = None
    sources: np.ndarray | None = None

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[ImageRow],
        class_names: Iterable[str],
        fingerprint: str,
        sources: Sequence[FileRecord] = (),
    ) -> Index:
        rows, class_names = list(rows), tuple(class_names)
        require_classes(class_names, "index")
        areas = np.zeros((len(rows), len(class_names) + 1), np.int32)
        for i, row in enumerate(rows):
            for c in (*row.areas, *(box[0] for box in row.boxes)):
                if not 1 <= c <= len(class_names):
                    raise DataError(
                        f"{row.name}: its label has class {c}, the dataset has 1..{len(class_names)}; correct it"
                    )
            if is_wide(len(class_names)) and len(row.areas) > MOST_IN_IMAGE:
                raise DataError(
                    f"{row.name}: {len(row.areas)} classes in one image, at most {MOST_IN_IMAGE} are possible"
                )
            areas[i, list(row.areas)] = list(row.areas.values())
        sizes = np.array([(row.height, row.width) for row in rows], np.int32).reshape(-1, 2)
        # One number at a time: COCO's 600,000 boxes as tuples would take 100 MB.
        numbers = (number for i, row in enumerate(rows) for box in row.boxes for number in (i, *box))
        boxes = np.fromiter(numbers, np.int32).reshape(-1, 6)
        names = np.array([row.name for row in rows], dtype=np.str_)
        contents = np.array([row.content for row in rows], np.int64)
        return cls(
            names,
            sizes,
            areas,
            class_names,
            fingerprint,
            boxes if len(boxes) else None,
            contents if contents.any() else None,
            table([row.files for row in rows]),
            np.array(sources, np.int64).reshape(-1, 4) if sources else None,
        )

    def __len__(self) -> int:
        return len(self.names)

    def class_name(self, number: int) -> str:
        return self.class_names[number - 1]

    @cached_property
    def hash(self) -> str:
        """16 hex digits over the data: names, sizes, areas, classes, boxes, the pixels of labels and the bytes of image
        files. Paths, times and the compression of labels are left out."""
        digest = hashlib.sha256("\0".join([*self.names.tolist(), *self.class_names]).encode())
        digest.update(self.sizes.tobytes())
        digest.update(self.areas.tobytes())
        if self.boxes is not None:
            digest.update(self.boxes.tobytes())
        if self.contents is not None:
            digest.update(self.contents.tobytes())
        if self.files is not None:
            digest.update(np.ascontiguousarray(self.files[:, 0, 0]).tobytes())
        return digest.hexdigest()[:16]

    def having(self, classes: Iterable[int], min_area: int = 1) -> np.ndarray:
        """(N,) bool: images in which some class of `classes` covers at least `min_area` pixels."""
        large: np.ndarray = np.any(self.areas[:, list(classes)] >= min_area, axis=1)
        return large

    @property
    def wide(self) -> bool:
        """Whether labels hold ranks of an image's classes, since there are too many classes for 8 bits."""
        return is_wide(len(self.class_names))

    def value(self, image: int, class_id: int) -> int:
        """The value of a class in the label of an image, as Split.label returns it.

        This is the class number; if the index is `wide`, the rank of the class among the image's, from 1 on.
        """
        if not self.wide:
            return class_id
        rank = np.count_nonzero(self.areas[image, 1 : class_id + 1])
        return int(rank) if self.areas[image, class_id] else ABSENT

    def with_values(self, label: np.ndarray, image: int) -> np.ndarray:
        """(H, W) uint8 of the image's label as in its file: with the value of each class, and 255 where it is ignored."""
        if not self.wide:
            return label
        classes = np.flatnonzero(self.areas[image])
        lookup = np.zeros(np.iinfo(np.uint16).max + 1, np.uint8)
        lookup[classes] = np.arange(1, len(classes) + 1)
        lookup[-1] = IGNORE
        return lookup[label]

    def boxes_of(self, image: int, class_id: int) -> np.ndarray | None:
        """(n, 4) int32 y0, x0, y1, x1 (ends exclusive) of the class's instances in the image; None if the dataset
        has no instances."""
        if self.boxes is None:
            return None
        begin, end = self._boxes_begin[image : image + 2]
        of_image = self.boxes[begin:end]
        return of_image[of_image[:, 1] == class_id, 2:]

    @cached_property
    def _boxes_begin(self) -> np.ndarray:
        """(N + 1,) the first row of each image in `boxes`."""
        assert self.boxes is not None
        return np.searchsorted(self.boxes[:, 0], np.arange(len(self) + 1))

    def checked(
        self, paths: Sequence[Sequence[str]], sources: Sequence[Path], gone_too: bool = False
    ) -> tuple[str | None, Index]:
        """The first file whose content changed since the preparation, or None; and the index with the present times, which
        is this one if they are the same.

        paths: for each image the paths of its `files`. gone_too: a missing file counts as changed.
        """
        changed: str | None = None
        files, records = (None if of is None else of.copy() for of in (self.files, self.sources))
        now = replace(self, files=files, sources=records)
        if now.sources is not None:
            changed = changed_file(now.sources, list(map(str, sources)), gone_too)
        if now.files is not None and changed is None:
            # Labels first, which are small and are edited most often; images last.
            for role in (*range(1, now.files.shape[1]), 0):
                of_role = [of_image[role] if role < len(of_image) else "" for of_image in paths]
                changed = changed or changed_file(now.files[:, role], of_role, gone_too)
        same = all(np.array_equal(getattr(self, key), getattr(now, key)) for key in ("files", "sources"))
        return changed, self if same else now

    def save(self, path: Path) -> None:
        """Write to `path` (.npz) atomically. Areas are stored as rows (image, class, area)."""
        image, number = np.nonzero(self.areas)
        meta = {"format": FORMAT, "classes": self.class_names, "fingerprint": self.fingerprint}
        optional: dict[str, Any] = {key: value for key in _OPTIONAL if (value := getattr(self, key)) is not None}
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            np.savez(
                file,
                names=self.names,
                sizes=self.sizes,
                image=image.astype(np.int32),
                number=number.astype(np.int16),
                area=self.areas[image, number],
                meta=np.array(json.dumps(meta)),
                **optional,
            )

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read an index. Raises DataError if it is damaged or of another format, FileNotFoundError if there is none."""
        try:
            with np.load(path, allow_pickle=False) as z:
                meta = json.loads(str(z["meta"]))
                if meta["format"] != FORMAT:
                    raise DataError(
                        f"{path}: index of format {meta['format']}, expected {FORMAT}; run 'fss-svf prepare' again"
                    )
                areas = np.zeros((len(z["names"]), len(meta["classes"]) + 1), np.int32)
                areas[z["image"], z["number"]] = z["area"]
                optional = {key: z[key] for key in _OPTIONAL if key in z.files}
                _check_shapes(len(areas), **optional)
                return cls(z["names"], z["sizes"], areas, tuple(meta["classes"]), meta["fingerprint"], **optional)
        except FileNotFoundError:
            raise
        # AttributeError: NumPy 1 opens a file of a single array as no context manager.
        except (
            BadZipFile,
            OSError,
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            EOFError,
            AttributeError,
        ) as error:
            raise DataError(f"{path}: the index is damaged ({error}); delete it and run 'fss-svf prepare'") from None


def _check_shapes(
    images: int,
    boxes: np.ndarray | None = None,
    contents: np.ndarray | None = None,
    files: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> None:
    """Raise ValueError for an array of a wrong shape."""
    if boxes is not None and (boxes.shape[1:] != (6,) or (np.diff(boxes[:, 0]) < 0).any()):
        raise ValueError("its boxes are not rows of six sorted by image")
    if contents is not None and contents.shape != (images,):
        raise ValueError("it does not have one label digest for each image")
    if files is not None and (files.ndim != 3 or (len(files), files.shape[2]) != (images, 4)):
        raise ValueError("its files are not records by image")
    if sources is not None and sources.shape[1:] != (4,):
        raise ValueError("its sources are not records")
