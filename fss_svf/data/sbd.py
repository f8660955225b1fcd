"""Labels of the Semantic Boundaries Dataset (SBD): benchmark_RELEASE/dataset/cls/NAME.mat."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np

from fss_svf.errors import DataError

_HEADER, _COMPRESSED = 128, 15


def read_sbd_label(path: Path) -> np.ndarray:
    """(H, W) uint8 class numbers 0..20 of an SBD file (GTcls.Segmentation). Raises DataError naming the file."""
    from scipy.io import loadmat  # imported here, since nothing else needs it at start-up

    try:
        raw = path.read_bytes()
        _verify(raw)
        segmentation = loadmat(io.BytesIO(raw), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        if segmentation.ndim != 2 or segmentation.dtype != np.uint8:
            raise ValueError(f"GTcls.Segmentation is {segmentation.dtype} of shape {segmentation.shape}")
        return np.ascontiguousarray(segmentation)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; finish the download of SBD") from None
    except Exception as error:  # scipy raises anything for damaged files
        raise DataError(f"{path}: cannot be read ({error}); the file is damaged, replace it") from None


def _verify(raw: bytes) -> None:
    """Check the checksums of the compressed parts: scipy crashes on some damaged files."""
    position = _HEADER
    while position < len(raw):
        order = "<" if raw[126:128] == b"IM" else ">"
        kind, length = struct.unpack_from(f"{order}II", raw, position)
        if kind == _COMPRESSED:
            zlib.decompress(raw[position + 8 : position + 8 + length])
        position += 8 + length
