"""Where features wait until the last episode that needs them: on the device, then in pinned host memory, then on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fss_svf.episode import Features
from fss_svf.errors import DataError

# Of the memory that a GPU has free when an evaluation begins; the rest is for the model at work.
_DEVICE_SHARE = 0.5


class FeatureCache:
    """Features by key. `close` deletes the files on disk.

    device    where features are computed and used
    limits    bytes on the device and in host memory: see memory_limits
    folder    of the files; it is made when the first is written
    next_use  when a key is needed next. Of each tier what waits longest makes room for what is needed sooner (Belady, 1966)
    dtype     in which floating features are stored; None: as they come. They are given back as they came
    """

    def __init__(
        self,
        device: torch.device,
        limits: tuple[int, int],
        folder: Path,
        next_use: Callable[[Hashable], int],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device, self.folder, self.next_use, self.dtype = device, folder, next_use, dtype
        self.tiers = [_Tier(limit) for limit in limits]
        self._types: dict[Hashable, dict[str, torch.dtype]] = {}
        self._files: dict[Hashable, Path] = {}
        self._written = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._types

    def __setitem__(self, key: Hashable, features: Features) -> None:
        # A row of a batch is copied: it would keep the whole batch.
        self._types[key] = {name: value.dtype for name, value in features.items()}
        self._put(key, {name: self._stored(value) for name, value in features.items()})

    def __getitem__(self, key: Hashable) -> Features:
        """On the device."""
        types = self._types[key]
        return {name: value.to(types[name]) for name, value in self._find(key).items()}

    def drop(self, key: Hashable) -> None:
        """Forget a key's features."""
        del self._types[key]
        for tier in self.tiers:
            tier.pop(key)
        if key in self._files:
            self._files.pop(key).unlink()

    def _stored(self, value: Tensor) -> Tensor:
        dtype = self.dtype if self.dtype is not None and value.is_floating_point() else value.dtype
        return value.detach().to(self.device, dtype, copy=True, non_blocking=True)

    def _find(self, key: Hashable) -> Features:
        on_device, on_host = self.tiers
        if key in on_device.features:
            return on_device.features[key]
        stored = on_host.pop(key) if key in on_host.features else torch.load(self._files[key], weights_only=True)
        features = {name: value.to(self.device, non_blocking=True) for name, value in stored.items()}
        # What is needed now is needed soonest: it may stay, and something else makes room.
        self._put(key, features)
        return features

    def _put(self, key: Hashable, features: Features) -> None:
        on_device, on_host = self.tiers
        on_device.put(key, features)
        for evicted, values in on_device.evict(self.next_use):
            if on_host.limit:
                on_host.put(evicted, {name: self._to_host(value) for name, value in values.items()})
            else:
                self._to_disk(evicted, values)
        for evicted, values in on_host.evict(self.next_use):
            self._to_disk(evicted, values)

    def _to_host(self, value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)

    def _to_disk(self, key: Hashable, features: Features) -> None:
        if key in self._files:  # written before, read and evicted again
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies to host memory do not wait by themselves
        path = self.folder / f"{self._written}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save({name: value.cpu() for name, value in features.items()}, path)
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError of a full disk
            raise DataError(
                f"{path}: {_size(features):,} bytes of encoded images do not fit there ({error}); make room, or keep more "
                "of them in memory with a higher cache_gb"
            ) from None
        self._written += 1
        self._files[key] = path

    def close(self) -> None:
        """Delete the files on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Tier:
    """Features in one kind of memory, of at most `limit` bytes after evict()."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.features: dict[Hashable, Features] = {}

    def put(self, key: Hashable, features: Features) -> None:
        self.features[key] = features
        self.bytes += _size(features)

    def pop(self, key: Hashable) -> Features:
        features = self.features.pop(key, {})
        self.bytes -= _size(features)
        return features

    def evict(self, next_use: Callable[[Hashable], int]) -> list[tuple[Hashable, Features]]:
        evicted = []
        while self.bytes > self.limit:
            key = max(self.features, key=next_use)
            evicted.append((key, self.pop(key)))
        return evicted


def memory_limits(device: torch.device, cache_gb: float) -> tuple[int, int]:
    """Bytes of features on the device and in host memory: half of what a GPU has free, and cache_gb (10^9 bytes each);
    on a CPU cache_gb alone.
    """
    host = int(cache_gb * 10**9)
    if device.type != "cuda":
        return host, 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(_DEVICE_SHARE * free), host


def _size(features: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in features.values())
