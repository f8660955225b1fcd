"""A method's steps on a device: encode, compare, segment. Evaluation, validation, predict and demo all call these.

Nothing here waits for the device, but where a method's `kept` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from fss_svf.config import Precision
from fss_svf.episode import Features, Prediction, normalize
from fss_svf.methods.method import FewShotMethod, regroup, rows_of
from fss_svf.precision import computing


class Inference:
    """A placed model in eval mode. Features go in and out as rows, one an image: Features of one row.

    batch_size  pairs that a GPU compares at a time
    """

    def __init__(self, model: FewShotMethod, device: torch.device, precision: Precision, batch_size: int = 8) -> None:
        self.model, self.device, self.precision, self.batch_size = model, device, precision, batch_size
        self._dtype = next(model.backbone.parameters()).dtype

    @contextmanager
    def running(self) -> Iterator[None]:
        """All steps run in this context: without gradients, in the precision asked for."""
        with torch.inference_mode(), computing(self.device, self.precision):
            yield

    def encode(
        self, images: Tensor, masks: Tensor, query_rows: Tensor, support_rows: Tensor
    ) -> tuple[list[Features], list[Features]]:
        """Rows of images[query_rows] as queries, and of images[support_rows] with `masks` as supports.

        images (B, 3, H, W) uint8, masks (M, H, W) uint8, query_rows (Q,) and support_rows (M,) int64; on the host or not.
        """
        images, masks, of_queries, of_supports = (
            tensor.to(self.device, non_blocking=True) for tensor in (images, masks, query_rows, support_rows)
        )
        batch = normalize(images).to(self._dtype)
        query: Features = {}
        support: Features = {}
        if not len(of_supports):
            query = self.model.encode_query(batch[of_queries])
        elif not len(of_queries):
            support = self.model.encode_support(batch[of_supports], masks)
        else:
            query, support = self.model.encode_both(batch, of_queries, of_supports, masks)
        return rows_of(query) if query else [], self.model.kept(support) if support else []

    def compare(self, query: Features, supports: Sequence[Features]) -> list[Features]:
        """Compare a query, one row, with each of the supports.

        Returns the supports' rows: with the features that the method's `compare` gives, without those that it alone reads.
        """
        # On a CPU a pair at a time is faster: its similarities stay in the cache.
        size = 1 if self.device.type == "cpu" else self.batch_size
        compared: list[Features] = []
        for start in range(0, len(supports), size):
            rows = supports[start : start + size]
            together = joined(rows)
            pairs = self.model.compare(query, regroup(together, len(rows)))
            found = {name: value.squeeze(0) for name, value in pairs.items()}
            rest = {name: value for name, value in together.items() if name not in self.model.compared}
            compared += rows_of({**rest, **found})
        return compared

    def segment(
        self, query: Features, episodes: Sequence[Sequence[Features]], size: tuple[int, int], ways: int = 1
    ) -> Prediction:
        """The prediction of B episodes of one query row; of each the rows of its compared supports, way by way."""
        support = joined([row for rows in episodes for row in rows])
        queries = {name: value.expand(len(episodes), *value.shape[1:]) for name, value in query.items()}
        return self.model.segment(queries, regroup(support, len(episodes[0]) // ways, ways), size)


def joined(rows: Sequence[Features]) -> Features:
    """Rows as one batch. Where a method keeps rows of different sizes, the smaller ones are filled up with zeros."""
    if len(rows) == 1:
        return dict(rows[0])
    return {name: torch.cat(_alike([row[name] for row in rows])) for name in rows[0]}


def _alike(values: list[Tensor]) -> list[Tensor]:
    if all(value.shape == values[0].shape for value in values):
        return values
    shape = [max(sizes) for sizes in zip(*(value.shape for value in values))]
    missing = ([want - has for want, has in zip(shape[::-1], value.shape[::-1])] for value in values)
    return [F.pad(value, [n for size in sizes for n in (0, size)]) for value, sizes in zip(values, missing)]
