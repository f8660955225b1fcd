"""Where the codes of images wait until the last episode that needs them: in memory up to a limit, then on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from fss_svf.episode import Code
from fss_svf.errors import DataError


class CodeStore:
    """Codes by key, held on the CPU. A context manager: at its end the files on disk are deleted.

    limit     bytes in memory; what goes over it lies in files
    folder    for these files; it is made when the first is written
    next_use  when a key is needed next: what waits longest goes to disk
    """

    def __init__(self, limit: int, folder: Path, next_use: Callable[[Hashable], int]) -> None:
        self.limit, self.folder, self.next_use = limit, folder, next_use
        self.bytes = 0
        self._memory: dict[Hashable, Code] = {}
        self._files: dict[Hashable, Path] = {}
        self._written = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._memory or key in self._files

    def __getitem__(self, key: Hashable) -> Code:
        if key in self._memory:
            return self._memory[key]
        return torch.load(self._files[key], weights_only=True)

    def __setitem__(self, key: Hashable, code: Code) -> None:
        # A row of a batch is copied: it would keep the whole batch.
        code = {name: value.detach().to("cpu", copy=True) for name, value in code.items()}
        self._memory[key] = code
        self.bytes += _size(code)
        while self.bytes > self.limit:
            self._to_disk(max(self._memory, key=self.next_use))

    def drop(self, key: Hashable) -> None:
        """Forget a code."""
        if key in self._memory:
            self.bytes -= _size(self._memory.pop(key))
        else:
            self._files.pop(key).unlink()

    def _to_disk(self, key: Hashable) -> None:
        code = self._memory.pop(key)
        self.bytes -= _size(code)
        path = self.folder / f"{self._written}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(code, path)
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError of a full disk
            raise DataError(
                f"{path}: {_size(code):,} bytes of encoded images do not fit there ({error}); make room, or keep more of "
                "them in memory with a higher cache_gb"
            ) from None
        self._written += 1
        self._files[key] = path

    def __enter__(self) -> CodeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _size(code: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in code.values())
