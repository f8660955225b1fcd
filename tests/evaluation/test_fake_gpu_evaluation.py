"""An evaluation's work on a GPU, on fake tensors: one device, and a host that waits where it is named. See fake_gpu.py."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fss_svf import svf
from fss_svf.data.augment import EvalTransform
from fss_svf.evaluation import engine as engine_module
from fss_svf.evaluation import features as features_module
from fss_svf.evaluation.engine import Engine, GroupCounts
from fss_svf.evaluation.episode_loss import EpisodeLoss
from fss_svf.evaluation.groups import EpisodeId, Query, QueryGroup
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.methods import clusters
from fss_svf.registry import METHODS
from tests.cli.test_config import TUNINGS_OF_CNNS
from tests.evaluation.test_plan import protocol
from tests.fake_gpu import CUDA, Allowed, FakeGPU, HostSync, needs_fake_tensors
from tests.training.test_fake_gpu import PRECISIONS, tuned

SIZE = 33
# All that an evaluation waits for, beside the files of the cache's last tier, whose features a copy has to reach first.
pytestmark = needs_fake_tensors

WAITS = {
    "methods/blocks.py:without_empty": Allowed(
        "how many positions an object has is the shape of what is kept of it", 3
    ),
    "methods/hsnet.py:_object_alone": Allowed("the same, of its maps at each level", 3),
    "evaluation/engine.py:_on_host": Allowed("the counts of all episodes of a query, in one copy"),
    "methods/clusters.py:cluster": Allowed(
        "the matcher's clusters: each merge depends on the one before, once a query"
    ),
    "methods/positional.py:basis": Allowed("the matcher's decomposition of a black image, once a model and size"),
}
OF_OBJECTS = {"methods/blocks.py:without_empty", "methods/hsnet.py:_object_alone"}


def crossed():
    """Methods x tunings x precisions; by default every method with SVF in one precision, BAM in both."""
    for number, (method, tuning) in enumerate(product(METHODS.names(), TUNINGS_OF_CNNS)):
        for precision in PRECISIONS:
            default = tuning == "svf" and (method == "bam" or precision == PRECISIONS[number % 2])
            yield pytest.param(method, tuning, precision, marks=[] if default else [pytest.mark.long])


def made(method, tuning, shots="train_k", way=1):
    """A task of a merged model, and a group of three supports, alone and two together."""
    model = tuned(method, tuning, shot=2).eval()
    svf.merge(model)
    supports = [(1,), (2,), (3,)] if way == 1 else [(1, 4), (2, 5)]
    several = (1, 2) if way == 1 else (1, 2, 4, 5)
    episodes = {images: [EpisodeId(1, 0, n)] for n, images in enumerate([*supports, several])}
    group = QueryGroup(Query(0), tuple(range(1, way + 1)), {1: 1}, episodes)
    base = tuple(range(6, 6 + model.base.classes)) if method == "bam" else None
    rule = None if way == 1 else "joint" if model.many_ways else "argmax"
    chosen = protocol(label="original", shots=shots, novel_threshold=0.5 if base else None)
    index = SimpleNamespace(class_names=["one"] * 12, wide=False, value=lambda image, class_id: class_id)
    split = SimpleNamespace(index=index)
    return EvaluationTask(model, split, "mask", EvalTransform(SIZE, "pad"), chosen, (1, 2, 3), base, rule), group


def run(gpu, task, group, folder, precision="float32", features_dtype=None):
    """As Engine.run, but that images and masks are not read from files."""
    gpu.module(task.model)
    engine = Engine(
        task, EngineOptions(CUDA, 2, 0, 1.0, folder, precision, features_dtype), [group], [0], loss=EpisodeLoss()
    )
    keys = group.all_supports()
    images = torch.zeros(1 + len(keys), 3, SIZE, SIZE, dtype=torch.uint8)
    masks = torch.ones(len(keys), SIZE, SIZE, dtype=torch.uint8)
    with engine.inference.running():
        (query,), supports = engine.inference.encode(images, masks, torch.arange(1), torch.arange(1, 1 + len(keys)))
        cache = engine.features._cache
        for key, row in zip((group.query, *keys), (query, *supports)):
            cache[key] = row
        compared = dict(zip(keys, engine.inference.compare(cache[group.query], [cache[key] for key in keys])))
        label = torch.zeros(40, 31, dtype=torch.uint8).to(CUDA, non_blocking=True)
        counts, _ = engine.count(group, cache[group.query], compared, label)
        return counts


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """What a GPU that is not there has free, and what the host makes of distances without values."""
    monkeypatch.setattr(features_module, "memory_limits", lambda *_: (10**9, 10**9))
    monkeypatch.setattr(clusters, "partition", lambda distances, _: np.arange(len(distances)) % 3)


@pytest.mark.parametrize(("method", "tuning", "precision"), list(crossed()))
def test_encoding_to_counts_waits_for_the_positions_of_objects_alone(tmp_path, method, tuning, precision):
    task, group = made(method, tuning)
    with FakeGPU(WAITS) as gpu:
        counts = run(gpu, task, group, tmp_path, precision)
    own = {"methods/clusters.py:cluster", "methods/positional.py:basis"}
    assert gpu.met <= (own if method == "matcher" else OF_OBJECTS)
    assert tuple(counts.prediction.shape) == (4, 3, 2)
    shapes = {}
    if method == "bam":
        n = len(task.base)
        shapes = {"base": (n + 1, 2), "meta": (4, 3, 2), "final first": (4, n + 2, 2), "base first": (4, n + 2, 2)}
    others = {**counts.further, **counts.fusions, **({} if counts.base is None else {"base": counts.base})}
    assert {name: tuple(value.shape) for name, value in others.items()} == shapes
    assert all(value.device == CUDA and value.dtype == torch.int64 for value in (counts.prediction, *others.values()))


@pytest.mark.parametrize(
    "changes", [{"shots": "vote"}, {"features_dtype": "bfloat16"}, {"way": 2}, {"way": 2, "method": "panet"}], ids=str
)
def test_votes_ways_and_stored_features_wait_no_more(tmp_path, changes):
    stored = changes.get("features_dtype")
    task, group = made(changes.get("method", "baseline"), "svf", changes.get("shots", "train_k"), changes.get("way", 1))
    with FakeGPU(WAITS) as gpu:
        counts = run(gpu, task, group, tmp_path, features_dtype=stored)
    assert gpu.met <= OF_OBJECTS
    assert len(counts.prediction) == (3 if "way" in changes else 4)


def test_the_counts_of_a_query_are_one_copy():
    with FakeGPU() as gpu:
        zeros = gpu.tensors({name: torch.zeros(1, 3, 2, dtype=torch.int64) for name in ("own", "meta", "true")})
        with pytest.raises(HostSync, match=r"evaluation/engine\.py:_on_host: .* copy to the host"):
            engine_module._on_host(GroupCounts(zeros["own"], {"meta": zeros["meta"]}, None, {}, zeros["true"]))
    base = torch.arange(4).view(2, 2)
    counts = [torch.arange(6).view(1, 3, 2) + start for start in (0, 10, 20)]
    true = torch.tensor([40])
    host = engine_module._on_host(GroupCounts(counts[0], {"meta": counts[1]}, base, {"base first": counts[2]}, true))
    assert host.prediction.tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert host.further["meta"].tolist() == [[[10, 11], [12, 13], [14, 15]]]
    assert host.fusions["base first"].tolist() == [[[20, 21], [22, 23], [24, 25]]]
    assert host.base.tolist() == [[0, 1], [2, 3]]
    assert host.true.tolist() == [40]
    assert engine_module._on_host(GroupCounts(counts[0], {}, None, {}, true)).base is None
