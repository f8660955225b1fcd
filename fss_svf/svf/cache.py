"""Factors on disk: one safetensors file a weight, named by the hash of the weight, at full rank.

A file that cannot be read or does not hold what it should is computed anew with a warning; nothing here ever fails a
run. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fss_svf.files import atomic_write
from fss_svf.svf.factors import Factors, svd

FORMAT = "fss-svf factors 1"
SUFFIX = ".svd.safetensors"
# Beyond this the oldest files go: a ResNet-50's layers 2 to 4 are 0.12 GB, and every base learner has its own.
LIMIT_BYTES = 4 << 30


def default_cache() -> Path | None:
    """Where factors are kept: FSS_SVF_CACHE (a folder, or "off"), else fss-svf/factors in the user's cache folder."""
    chosen = os.environ.get("FSS_SVF_CACHE")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fss-svf" / "factors"


def cached_svd(matrices: Tensor, folder: Path) -> Factors:
    """svd(matrices), read from `folder` where it was computed before. On the device of the matrices."""
    path = folder / f"{_digest([matrices])}{SUFFIX}"
    found = _read(path)
    if found is not None:
        u, s, vh = (found[name].to(matrices.device) for name in ("U", "S", "Vh"))
        return u, s, vh
    factors = svd(matrices)
    _write(path, {name: value.cpu().contiguous() for name, value in zip(("U", "S", "Vh"), factors)})
    return factors


def _read(path: Path) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as f:
            metadata, state = f.metadata() or {}, {name: f.get_tensor(name) for name in ("U", "S", "Vh")}
        # safetensors has no checksum of its own.
        if metadata.get("format") == FORMAT and metadata.get("sha256") == _digest(state.values()):
            os.utime(path)  # used now, so not among the oldest
            return state
        problem = "its content is not what was written"
    except (SafetensorError, OSError) as error:
        problem = str(error)
    warnings.warn(f"{path}: a damaged file of cached factors ({problem}); they are computed anew", stacklevel=2)
    return None


def _write(path: Path, state: dict[str, Tensor]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            save_file(state, unfinished, metadata={"format": FORMAT, "sha256": _digest(state.values())})
        _drop_oldest(path.parent)
    except (SafetensorError, OSError) as error:  # no space, no permission
        warnings.warn(f"{path}: the factors could not be cached ({error}); cache=None turns this off", stacklevel=2)


def _drop_oldest(folder: Path) -> None:
    files = []
    for file in folder.glob(f"*{SUFFIX}"):
        try:
            files.append((file.stat().st_mtime, file.stat().st_size, file))
        except FileNotFoundError:  # another process was faster
            continue
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= LIMIT_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= size


def _digest(tensors: Iterable[Tensor]) -> str:
    """32 hex digits over shapes, dtypes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
