"""Running episodes: every image is encoded once, every query compared once with a support, whatever they serve.

The counts are those of a plain loop, which encodes and segments one episode after the other: equal in float64, and in
float32 but for a pixel here and there (tests/test_engine.py).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from fss_svf import svf
from fss_svf.config import Precision, Protocol
from fss_svf.data.augment import EvalTransform, query_mask
from fss_svf.data.dataset import Split, SupportAnnotation
from fss_svf.data.loader import batches
from fss_svf.data.loading import EvalImageBatch, EvalImages, base_label_lookup
from fss_svf.episode import Code, normalize
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.base_classes import count_fusions
from fss_svf.evaluation.counts import EpisodeCount, LabelCount, count_episode, count_labels
from fss_svf.evaluation.store import CodeStore
from fss_svf.evaluation.vote import vote
from fss_svf.evaluation.work import Group, ImageRoles, Query, Support, Supports, roles_of_images
from fss_svf.methods.method import FewShotMethod, regroup
from fss_svf.precision import computing


@dataclass(frozen=True)
class Engine:
    """How to run: what changes speed and memory, and numbers only as far as float order goes (precision: further).

    batch_size  images encoded, and episodes segmented, at a time
    workers     loader processes
    cache_gb    memory for codes; what goes over it waits in `folder`
    precision   of precision.py
    """

    device: torch.device
    batch_size: int
    workers: int
    cache_gb: float
    folder: Path
    precision: Precision = "float32"


@dataclass
class Outcome:
    """What the different episodes of a group gave, in their order.

    counts  by name: "" for the method's own prediction, and FewShotMethod.also_evaluated
    base    of the query's base classes, and fused the fusions of each episode by name, where those are measured
    """

    counts: dict[str, list[EpisodeCount]] = field(default_factory=dict)
    base: LabelCount | None = None
    fused: list[dict[str, LabelCount]] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """What is evaluated.

    base  the dataset's numbers of the base classes, where they are measured
    """

    model: FewShotMethod
    split: Split
    annotation: SupportAnnotation
    transform: EvalTransform
    protocol: Protocol
    base: tuple[int, ...] | None = None


class Runner:
    """Runs groups of episodes, and holds on to codes until their last one.

    seconds  spent by what they went for
    encoded  images so far, and images: how many there will be; `tell` is called when encoded grows
    masks    of the last group: of each different episode the mask said, uint8 at the label's place, and the truth
    """

    def __init__(self, task: Task, engine: Engine, groups: Sequence[Group], positions: Sequence[int]) -> None:
        """`positions`: of `groups`, those to be run, ascending."""
        self.task, self.engine, self.groups, self.positions = task, engine, groups, positions
        self.seconds: dict[str, float] = defaultdict(float)
        self.encoded = self.images = 0
        self.tell: Callable[[], object] = lambda: None
        self.masks: dict[Supports, tuple[Tensor, Tensor]] = {}
        self._dtype = next(task.model.backbone.parameters()).dtype
        self._uses: dict[Hashable, deque[int]] = {}
        for position in positions:
            for key in groups[position].needs():
                self._uses.setdefault(key, deque()).append(position)
        self._lookup = None if task.base is None else torch.from_numpy(base_label_lookup(task.base))

    def __iter__(self) -> Generator[tuple[int, Outcome], None, None]:
        """The outcome of every position, with SVF merged. The model is left in eval mode, unmerged."""
        model = self.task.model.eval()
        limit = int(self.engine.cache_gb * 2**30)
        self._images = self._encoded_images()
        try:
            svf.merge(model)
            model.shots = "mean" if self.task.protocol.shots == "mean" else "own"
            with CodeStore(limit, self.engine.folder, self._next_use) as self._store:
                for position in self.positions:
                    # A generator must not leave its caller in inference mode.
                    with torch.inference_mode(), computing(self.engine.device, self.engine.precision):
                        outcome = self._run(self.groups[position])
                    yield position, outcome
        finally:
            # Loader processes end here, not when the garbage is collected: a later one's child would find them.
            self._images.close()
            model.shots = "own"
            svf.unmerge(model)

    # Codes

    def _next_use(self, key: Hashable) -> int:
        # A label is needed when its query is.
        uses = self._uses.get(key[1] if isinstance(key, tuple) and key[0] == "label" else key)
        return uses[0] if uses else 0

    def _encoded_images(self) -> Generator[None, None, None]:
        """Encode and store a batch of images at each step, in the order in which the groups need them."""
        # Batches are those of the whole evaluation, whoever runs a part of it: a batch may move the last digit of a code.
        roles, size = roles_of_images(self.groups), self.engine.batch_size
        chunks = [roles[i : i + size] for i in range(0, len(roles), size)]
        wanted = [
            image for chunk in chunks if any(key in self._uses for image in chunk for key in image) for image in chunk
        ]
        make = EvalImages(
            self.task.split,
            [(image.image, [(s.class_id, s.class_ids) for s in image.supports]) for image in wanted],
            self.task.transform,
            self.task.annotation,
        )
        self.images = len(wanted)
        loaded = batches(make, EvalImageBatch.collate, range(len(wanted)), size, self.engine.workers)
        for start in range(0, len(wanted), size):
            with self._timed("loading"):
                images = next(loaded)
            with self._timed("encoding"):
                self._encode(wanted[start : start + size], images)
            self.encoded += len(images)
            self.tell()
            yield

    def _encode(self, roles: Sequence[ImageRoles], loaded: EvalImageBatch) -> None:
        model, device = self.task.model, self.engine.device
        images = normalize(loaded.images.to(device)).to(self._dtype)
        masks, labels = loaded.masks.to(device), loaded.labels()
        queries = torch.tensor([i for i, image in enumerate(roles) if image.query], device=device)
        owners = torch.tensor([i for i, image in enumerate(roles) for _ in image.supports], device=device)
        query: Code = {}
        support: Code = {}
        if not len(owners):
            query = model.encode_query(images)
        elif not len(queries):
            support = model.encode_support(images[owners], masks)
        else:
            query, support = model.encode_both(images, queries, owners, masks)
        for row, i in enumerate(queries.tolist()):
            key = roles[i].query
            if key in self._uses:
                self._store[key] = _row(query, row)
                self._store["label", key] = {"label": labels[i], "resized": loaded.resized[i]}
        for row, key in enumerate(key for image in roles for key in image.supports):
            if key in self._uses:
                self._store[key] = model.kept(_row(support, row))

    def _code(self, key: Query | Support) -> Code:
        """The code of an image, of one row, on the device."""
        while key not in self._store:
            next(self._images)
        return {name: value.to(self.engine.device, non_blocking=True) for name, value in self._store[key].items()}

    def _release(self, group: Group) -> None:
        for key in group.needs():
            self._uses[key].popleft()
            if not self._uses[key]:
                del self._uses[key]
                self._store.drop(key)
                if isinstance(key, Query):
                    self._store.drop(("label", key))

    # Episodes

    def _run(self, group: Group) -> Outcome:
        model, protocol = self.task.model, self.task.protocol
        query = self._code(group.query)
        supports = {key: self._compared(query, key) for key in group.all_supports()}
        label, resized = (self._store["label", group.query][name] for name in ("label", "resized"))
        place = resized if protocol.label == "resized" else label
        truth = torch.from_numpy(query_mask(place.numpy(), group.class_ids))
        size = (label.shape[0], label.shape[1])

        outcome = Outcome({name: [] for name in ("", *model.also_evaluated)})
        base = None
        if self.task.base is not None:
            assert self._lookup is not None
            with self._timed("segmenting"):
                logits = at_label(model.segment_base(query, self._size), size, protocol)
                base = logits[0].argmax(0).cpu()
            base_label = self._lookup[place.long()]
            with self._timed("counting"):
                outcome.base = count_labels(base, base_label, (0, *self.task.base))
        self.masks.clear()
        for images, said, novel in self._segmented(group, query, supports, size):
            with self._timed("counting"):
                for name, mask in said.items():
                    outcome.counts[name].append(count_episode(group.measured, mask, truth))
                self.masks[images] = said[""], truth
                if novel is not None and base is not None:
                    classes = (*self.task.base, group.class_ids[0])  # type: ignore[misc]
                    outcome.fused.append(count_fusions(novel, base, truth, base_label, classes))
        self._release(group)
        return outcome

    @property
    def _size(self) -> tuple[int, int]:
        return self.task.transform.size, self.task.transform.size

    def _compared(self, query: Code, key: Support) -> Code:
        """The code of a support, a single row, with what comparing says in place of what only that reads."""
        model, code = self.task.model, self._code(key)
        with self._timed("comparing"):
            found = model.compare(query, regroup(code, 1))
            kept = {name: value for name, value in code.items() if name not in model.compared}
            return {**kept, **{name: value[0] for name, value in found.items()}}

    def _segmented(
        self, group: Group, query: Code, supports: Mapping[Support, Code], size: tuple[int, int]
    ) -> Iterator[tuple[Supports, dict[str, Tensor], Tensor | None]]:
        """Of every different episode, in order, its supports, its masks by name, and where a fusion sees the novel class."""
        if self.task.protocol.shots != "vote":
            yield from self._each(group, list(group.episodes), query, supports, size)
            return
        alone = dict.fromkeys((image,) for images in group.episodes for image in images)
        found = {images[0]: said for images, said, _ in self._each(group, list(alone), query, supports, size)}
        for images in group.episodes:
            yield images, {name: vote(torch.stack([found[i][name] for i in images])) for name in found[images[0]]}, None

    def _each(
        self,
        group: Group,
        episodes: Sequence[Supports],
        query: Code,
        supports: Mapping[Support, Code],
        size: tuple[int, int],
    ) -> Iterator[tuple[Supports, dict[str, Tensor], Tensor | None]]:
        """The same without a vote, batch by batch of as many shots."""
        model, protocol = self.task.model, self.task.protocol
        for batch in _batches(episodes, self.engine.batch_size):
            with self._timed("segmenting"):
                rows = [supports[key] for images in batch for key in group.supports(images)]
                way = len(group.class_ids)
                support = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
                support = regroup(support, len(batch[0]) // way, way)
                prediction = model.segment(
                    {name: value.expand(len(batch), *value.shape[1:]) for name, value in query.items()},
                    support,
                    self._size,
                )
            with self._timed("upsampling"):
                logits = {"": prediction.logits, **{name: prediction.aux[name] for name in model.also_evaluated}}
                stretched = {name: at_label(value, size, protocol) for name, value in logits.items()}
                masks = {name: value.argmax(1).to(torch.uint8).cpu() for name, value in stretched.items()}
                novel = None
                if self.task.base is not None and protocol.novel_threshold is not None:
                    novel = (stretched[""].softmax(1)[:, 1] > protocol.novel_threshold).cpu()
            for i, images in enumerate(batch):
                yield images, {name: value[i] for name, value in masks.items()}, None if novel is None else novel[i]

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[what] += perf_counter() - start


def _row(code: Code, row: int) -> Code:
    return {name: value[row : row + 1] for name, value in code.items()}


def _batches(episodes: Sequence[Supports], size: int) -> Iterator[list[Supports]]:
    """Episodes of as many supports together, in order."""
    batch: list[Supports] = []
    for images in episodes:
        if batch and (len(batch) == size or len(batch[0]) != len(images)):
            yield batch
            batch = []
        batch.append(images)
    if batch:
        yield batch
