"""The features of every image that an evaluation needs: each image is encoded once, as all it is needed for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence

import torch
from torch import Tensor

from fss_svf.data.loader import batches
from fss_svf.data.loading import EvalImageBatch, EvalImages
from fss_svf.episode import Features
from fss_svf.evaluation.feature_cache import FeatureCache, memory_limits
from fss_svf.evaluation.groups import Label, Query, QueryGroup, Support, roles_of_images
from fss_svf.evaluation.inference import Inference
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.evaluation.timer import Timer


class ImageFeatures:
    """Features by Query and Support, encoded when they are first needed and kept until their last group.

    `close` ends its loader processes and deletes its files.

    encoded  images so far, and images: how many there will be; `progress` is called when encoded grows
    """

    def __init__(
        self,
        task: EvaluationTask,
        options: EngineOptions,
        inference: Inference,
        groups: Sequence[QueryGroup],
        positions: Sequence[int],
        timer: Timer,
        progress: Callable[[], object],
    ) -> None:
        """`positions`: of the groups that are run, ascending."""
        self._task, self._options, self._inference, self._timer = task, options, inference, timer
        self._progress = progress
        self._uses: dict[Hashable, deque[int]] = {}
        for position in positions:
            for key in groups[position].needs():
                self._uses.setdefault(key, deque()).append(position)
        # Batches are those of the whole evaluation, whoever runs a part of it: a batch may move a feature's last digit.
        roles, size = list(roles_of_images(groups).items()), options.batch_size
        chunks = [roles[i : i + size] for i in range(0, len(roles), size)]
        self._wanted = [
            image for chunk in chunks if any(key in self._uses for _, keys in chunk for key in keys) for image in chunk
        ]
        self.encoded, self.images = 0, len(self._wanted)
        dtype = None if options.features_dtype is None else getattr(torch, options.features_dtype)
        limits = memory_limits(options.device, options.cache_gb)
        self._cache = FeatureCache(options.device, limits, options.folder, self._next_use, dtype)
        self._batches = self._encode_batches()

    def __getitem__(self, key: Query | Support) -> Features:
        """The features of one row, on the device."""
        while key not in self._cache:
            next(self._batches)
        return self._cache[key]

    def label(self, query: Query) -> Tensor:
        """(h, w) uint8, as Split.label, of a query that was encoded, on the device, at the size that is counted at."""
        return self._cache[Label(query.image)]["label"]

    def release(self, group: QueryGroup) -> None:
        """The group is done: forget what no later one needs."""
        for key in group.needs():
            self._uses[key].popleft()
            if not self._uses[key]:
                del self._uses[key]
                self._cache.drop(key)
                if isinstance(key, Query):
                    self._cache.drop(Label(key.image))

    def _next_use(self, key: Hashable) -> int:
        # A label is needed when its query is.
        uses = self._uses.get(Query(key.image) if isinstance(key, Label) else key)
        return uses[0] if uses else 0

    def _encode_batches(self) -> Generator[None, None, None]:
        """Encode and store a batch of images at each step, in the order in which the groups need them."""
        task, wanted, size = self._task, self._wanted, self._options.batch_size
        make = EvalImages(
            task.split,
            [(image, [(s.class_id, s.masked) for s in _supports(keys)]) for image, keys in wanted],
            task.transform,
            task.annotation,
        )
        loaded = batches(
            make,
            EvalImageBatch.collate,
            range(len(wanted)),
            size,
            self._options.workers,
            pin_memory=self._options.device.type == "cuda",
        )
        try:
            for start in range(0, len(wanted), size):
                with self._timer("loading"):
                    images = next(loaded)
                with self._timer("encoding"):
                    self._encode([keys for _, keys in wanted[start : start + size]], images)
                self.encoded += len(images)
                self._progress()
                yield
        finally:
            # Loader processes end here, not when the garbage is collected: a later one's child would find them.
            loaded.close()

    def _encode(self, roles: Sequence[Sequence[Query | Support]], loaded: EvalImageBatch) -> None:
        """Encode a batch; roles: of each of its images, as roles_of_images."""
        of_queries = [(i, key) for i, keys in enumerate(roles) for key in keys if isinstance(key, Query)]
        of_supports = [(i, key) for i, keys in enumerate(roles) for key in _supports(keys)]
        rows = (torch.tensor([i for i, _ in of_role], dtype=torch.int64) for of_role in (of_queries, of_supports))
        queries, supports = self._inference.encode(loaded.images, loaded.masks, *rows)
        labels = loaded.resized if self._task.protocol.label == "resized" else loaded.labels()
        for (i, query), row in zip(of_queries, queries):
            if query in self._uses:
                self._cache[query] = row
                self._cache[Label(query.image)] = {"label": labels[i]}
        for (_, support), row in zip(of_supports, supports):
            if support in self._uses:
                self._cache[support] = row

    def close(self) -> None:
        """End the loader processes and delete the files."""
        self._batches.close()
        self._cache.close()


def _supports(keys: Sequence[Query | Support]) -> list[Support]:
    return [key for key in keys if isinstance(key, Support)]
