"""Reads files of weights and checkpoints without running code in them.

torch.load(weights_only=True) refuses unknown classes, such as an argparse.Namespace or a NumPy number saved with the
weights. Here such a class is replaced by an empty one: the tensors are read, and nothing runs.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fss_svf.errors import WeightsError, listing

_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
# The most unknown classes in one file.
_LIMIT = 100
# First bytes of files that are not weights, and what to do.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file; fetch it with 'git lfs pull'"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it; use PyTorch weights"),
    (b"\x93NUMPY", "a NumPy array; use a state dict, as torch.save writes it"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
)
_SAVED = "torch.save(model.state_dict(), FILE)"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a file written by torch.save or safetensors. No code in the file runs.

    Objects of unknown classes become empty dicts. A pickled nn.Module becomes a dict whose attributes hold its tensors.
    Raises WeightsError naming the file and its actual kind.
    """
    try:
        with path.open("rb") as f:
            start = f.read(512)
        if problem := _no_weights(path, start):
            raise WeightsError(f"{path}: not a readable checkpoint ({problem})")
        if path.suffix == ".safetensors" or start[8:10] == b'{"':
            return dict(load_file(path))
        content, left_out = _load(path)
    except WeightsError:
        raise
    except FileNotFoundError:
        raise WeightsError(f"{path.absolute()}: no such checkpoint") from None
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{path}: not a readable checkpoint ({_reason(error)}); half a download? get it again"
        ) from None
    except Exception as error:  # an odd pickle raises anything: KeyError, TypeError, UnicodeDecodeError
        raise WeightsError(
            f"{path}: not a readable checkpoint ({_reason(error)}); save only the tensors, as {_SAVED} does"
        ) from None
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path}: holds a {type(content).__name__}, expected a dict of tensors, as {_SAVED} writes it"
        )
    if left_out and not any(True for _ in tensors(content)):
        raise WeightsError(
            f"{path}: not a readable checkpoint (no tensors, but {listing(left_out, 3)}, which could run code and is not "
            f"loaded); if you trust it, load it in Python and save only the tensors, as {_SAVED} does"
        )
    return content


def tensors(content: Any, name: str = "", depth: int = 8) -> Any:
    """Every tensor in nested dicts and modules, with its name: keys and attributes joined by dots."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict) and depth:
        module = vars(content) if isinstance(content, OrderedDict) and "_modules" in vars(content) else None
        if module is not None:  # a pickled model
            nested = [module.get(kind) or {} for kind in ("_parameters", "_buffers", "_modules")]
        else:
            nested = [content]
        for part in nested:
            for key, value in part.items():
                if isinstance(key, str):
                    yield from tensors(value, f"{name}.{key}" if name else key, depth if module else depth - 1)


def _load(path: Path) -> tuple[Any, list[str]]:
    """The content, and the names of the classes that were replaced."""
    replaced: dict[str, type] = {}
    while True:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(list(replaced.values())):
                warnings.simplefilter("ignore")  # about pickle protocols
                return torch.load(path, map_location="cpu", weights_only=True), list(replaced)
        except pickle.UnpicklingError as error:
            refused = _REFUSED.search(str(error))
            if not refused or refused[1] in replaced or len(replaced) == _LIMIT:
                blocked = re.search(r"GLOBAL (\S+)", str(error))
                if blocked or replaced:
                    name = blocked[1] if blocked else listing(replaced, 3)
                    raise ValueError(f"it holds {name}, which could run code and is not loaded") from None
                raise
            replaced[refused[1]] = _empty(refused[1])


def _empty(name: str) -> type:
    """A class of this full name that stores the pickled state of its objects and does nothing."""
    module, _, qualname = name.rpartition(".")
    # NumPy's objects are set by tuples. All others are set by a dict, which becomes the attributes of an OrderedDict.
    kind = _Opaque if module.split(".")[0] == "numpy" else _Attributes
    return type(qualname, (kind,), {"__module__": module or "builtins", "__qualname__": qualname})


class _Attributes:
    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _Opaque:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _no_weights(path: Path, start: bytes) -> str:
    """The kind of a file that cannot hold weights, and what to do; empty if it may hold some."""
    if not start:
        return "an empty file; get it again"
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return what
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--", b"<error")):
        return "a web page, not weights; the download needs another address, or a login in the browser"
    if start.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        inner = [name.rsplit("/", 1)[-1] for name in names]
        if "constants.pkl" in inner:
            return "a TorchScript archive; save its tensors: torch.save(torch.jit.load(ARCHIVE).state_dict(), FILE)"
        if "data.pkl" not in inner:
            return f"a zip archive of {listing(names, 2)}; unpack it and use the file of weights"
    elif head.isascii() and start[:1] != b"\x80" and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return f"a text file that begins with {start[:40].decode('ascii').splitlines()[0]!r}"
    return ""


def _is_cut_short(path: Path, start: bytes, error: Exception) -> bool:
    if isinstance(error, (SafetensorError, EOFError)) or (start.startswith(b"PK") and not zipfile.is_zipfile(path)):
        return True
    return any(word in str(error) for word in ("truncated", "unexpected EOF", "failed reading", "Ran out of input"))


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
