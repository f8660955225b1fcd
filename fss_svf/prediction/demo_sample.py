"""Two photographs to try the demo with: those that gradio's own package brings along."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from fss_svf.prediction.cutout import cut_out
from fss_svf.prediction.finder import paintable
from fss_svf.prediction.photos import read_photo

_EXAMPLE, _QUERY = "cheetah1.jpg", "cheetah.jpg"
# On the animal and beside it, in fractions of the example's width and height.
_ON = ((0.25, 0.3), (0.5, 0.25), (0.5, 0.55), (0.7, 0.3), (0.75, 0.95), (0.35, 0.85), (0.15, 0.2), (0.78, 0.2))
_BESIDE = ((0.05, 0.5), (0.95, 0.5), (0.05, 0.05), (0.95, 0.05), (0.5, 0.03))


def has_sample() -> bool:
    """Whether this version of gradio brings the photographs."""
    return all(path.is_file() for path in _files())


def copy_sample(folder: Path) -> tuple[Path, np.ndarray, Path]:
    """An example, the (h, w) bool strokes on its copy, and a photograph to search, as files in `folder`."""
    example, query = (Path(shutil.copy(path, folder)) for path in _files())
    image = paintable(read_photo(example))
    height, width = image.shape[:2]
    on, beside = ([(x * width, y * height) for x, y in points] for points in (_ON, _BESIDE))
    return example, cut_out(image, on, beside).astype(bool), query


def _files() -> list[Path]:
    import gradio

    return [Path(gradio.__file__).parent / "media_assets" / "images" / name for name in (_EXAMPLE, _QUERY)]
