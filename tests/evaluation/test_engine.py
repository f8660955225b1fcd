"""The engine's counts are those of a plain loop, whatever is cached, shared, spilled or done before."""

import multiprocessing
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from fss_svf import svf
from fss_svf.data.augment import EvalTransform
from fss_svf.data.fold import Fold
from fss_svf.data.manifest import EpisodeList
from fss_svf.data.toy import Toy
from fss_svf.errors import DataError
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.engine import Engine
from fss_svf.evaluation.episode_loss import EpisodeLoss
from fss_svf.evaluation.feature_cache import FeatureCache
from fss_svf.evaluation.features import ImageFeatures
from fss_svf.evaluation.groups import group_episodes, roles_of_images, share
from fss_svf.evaluation.inference import Inference
from fss_svf.evaluation.runs import evaluate_lists, predicted
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.evaluation.vote import vote
from fss_svf.methods.dcama import DCAMA
from fss_svf.methods.hsnet import HSNet
from tests.conftest import toy_options
from tests.evaluation.test_plan import protocol
from tests.methods import test_methods
from tests.pixels import assert_hardly_any_turned
from tests.plain_evaluation import EvalEpisodes, as_float, mask_at_label, plain_counts, plain_true
from tests.training.test_precision import tf32

pytestmark = pytest.mark.numeric

SIZE = 65
METHODS = ("baseline", "pfenet", "bam", "panet", "ssp", "hsnet", "dcama", "matcher", "prototype")


def task_of(root, name="baseline", shot=1, way=1, dtype=torch.float64, **changes):
    """A model of random weights, whose prediction holds both background and foreground, on the toy dataset."""
    model = test_methods.model(name, shot=shot).eval().to(dtype)
    if name == "bam":  # two base classes beside the first's novel ones
        model.fit_state({"base.cls.4.bias": torch.zeros(16)})
        model.eval().to(dtype)
    split = Toy(toy_options(root)).split("val")
    chosen = protocol(**{"label": "original", "resize": "pad", **changes})
    fold = Fold(toy_options(root), split.index.class_names, 0)
    base = fold.base if name == "bam" else None
    task = EvaluationTask(
        model, split, "mask", EvalTransform(SIZE, chosen.resize, chosen.pad), chosen, fold.novel, base
    )
    if classifier(model) is not None:
        balance(task, lists_of(root)[1][0])
    return task


def classifier(model):
    """The last layers of a method's head; None where it has none."""
    if isinstance(model, HSNet):
        return model.head.decoder2
    return model.decoder[-1] if isinstance(model, DCAMA) else getattr(model, "classifier", None)


@torch.no_grad()
def balance(task, episodes):
    """Half of the pixels foreground: a head of random weights would say the same of all.

    The edge lies between two pixels' values, not on one: in float64 no rounding then turns a pixel.
    """
    make, bias = EvalEpisodes(task.split, episodes, task.transform), classifier(task.model)[-1].bias
    differences = []
    for number in range(6):
        episode = make(number).episode
        # HSNet's logits of several supports are votes.
        one = replace(episode, support_images=episode.support_images[:, :1], support_masks=episode.support_masks[:, :1])
        prediction = task.model(as_float(one if isinstance(task.model, HSNet) else episode, bias.dtype))
        logits = prediction.aux.get("meta", prediction.logits)
        differences.append((logits[:, 1] - logits[:, 0]).flatten())
    bias[0] += edge(torch.cat(differences))


def edge(differences):
    """The middle of the widest gap between neighbouring values near the median."""
    ranked, middle = differences.sort().values, len(differences) // 2
    near = ranked[middle - 50 : middle + 51]
    widest = near.diff().argmax()
    return (near[widest] + near[widest + 1]) / 2


def lists_of(root, shots=(1, 3), runs=2, episodes=25, way=1):
    options = toy_options(root)
    index = Toy(options).split("val").index
    samplers = [
        Fold(options, index.class_names, 0).sampler(index, "val", max(shots), 5 + run, "in_order", way=way)
        for run in range(runs)
    ]
    drawn = [EpisodeList.drawn(sampler, episodes) for sampler in samplers]
    return {shot: [one.first_supports(shot) for one in drawn] for shot in shots}


def engine_of(folder, **changes):
    values = {
        "device": torch.device("cpu"),
        "batch_size": 4,
        "workers": 0,
        "cache_gb": 1.0,
        "folder": folder / "features",
    }
    return EngineOptions(**{**values, **changes})


def compare(task, lists, evaluated):
    for shot, tables in evaluated.items():
        for table, episodes in zip(tables, lists[shot], strict=True):
            assert np.array_equal(table.counts, plain_counts(task, episodes))
            assert np.array_equal(table.true, plain_true(task, episodes))
            # Some pixels are predicted to be the object and some are not, or a comparison would say little.
            both = table.counts[table.counts[:, 1, 1] < table.counted, 1, 0]
            assert len(both) > 3
            assert both.sum() > 100
            for name, counts in table.further.items():
                assert np.array_equal(counts, plain_counts(task, episodes, name))


# The place of the label is the same lines for every method, and others for BAM's base labels.
@pytest.mark.parametrize(
    ("name", "resize", "label"),
    [
        *((name, "pad", "original") for name in METHODS),
        *((name, "squash", "original") for name in ("baseline", "bam")),
        *((name, resize, "resized") for name in ("baseline", "bam") for resize in ("pad", "squash")),
    ],
)
def test_counts_equal_the_plain_loop(toy_root, tmp_path, name, resize, label):
    episodes = 5 if name == "hsnet" else 15  # its plain loop is slow in float64
    task, lists = task_of(toy_root, name, shot=3, label=label, resize=resize), lists_of(toy_root, episodes=episodes)
    compare(task, lists, evaluate_lists(task, engine_of(tmp_path), lists))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("label", ["original", "resized"])
def test_the_loss_is_the_mean_of_the_episodes(toy_root, tmp_path, label):
    """Each episode counts as often as it is drawn."""
    task, (first, second) = task_of(toy_root, label=label), lists_of(toy_root, (1,), episodes=6)[1]
    loss = EpisodeLoss()
    evaluate_lists(task, engine_of(tmp_path), {1: [first, first, second]}, loss=loss)
    expected = []
    for episodes in (first, first, second):
        make = EvalEpisodes(task.split, episodes, task.transform)
        for one in map(make, range(len(episodes))):
            truth = one.episode.query_mask[0] if label == "resized" else one.original_mask
            with torch.no_grad():
                logits = task.model.eval()(as_float(one.episode, torch.float64)).logits
            at_size = at_label(logits, tuple(truth.shape), task.protocol)
            expected.append(torch.nn.functional.cross_entropy(at_size, truth[None].long(), ignore_index=255))
    assert loss.read() == pytest.approx(float(torch.stack(expected).mean()), rel=1e-9)


def test_votes_have_no_loss(toy_root, tmp_path):
    loss = EpisodeLoss()
    evaluate_lists(task_of(toy_root, shots="vote"), engine_of(tmp_path), lists_of(toy_root, (3,), 1, 2), loss=loss)
    assert loss.read() is None


def test_counts_of_several_ways_equal_the_plain_loop(toy_root, tmp_path):
    task, lists = task_of(toy_root, "panet"), lists_of(toy_root, shots=(1, 2), way=2, episodes=60)
    evaluated = evaluate_lists(task, engine_of(tmp_path), lists)
    compare(task, lists, evaluated)
    assert set(evaluated[1][0].measured.sum(1)) == {1, 2}


@pytest.mark.parametrize("annotation", ["bbox", "scribble"])
def test_supports_are_annotated_as_in_the_plain_loop(toy_root, tmp_path, annotation):
    task, lists = replace(task_of(toy_root), annotation=annotation), lists_of(toy_root, runs=1)
    compare(task, lists, evaluate_lists(task, engine_of(tmp_path), lists))


def test_in_float32_hardly_a_pixel_turns(toy_root, tmp_path):
    task, lists = task_of(toy_root, "pfenet", dtype=torch.float32), lists_of(toy_root, episodes=40)
    ours = evaluate_lists(task, engine_of(tmp_path), lists)
    found = np.concatenate([table.counts for tables in ours.values() for table in tables])
    expected = np.concatenate([plain_counts(task, episodes) for runs in lists.values() for episodes in runs])
    assert_hardly_any_turned(found, expected)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_precision_is_the_engines_own(toy_root, tmp_path, monkeypatch, precision):
    """Whatever training set; on a CPU TF32 changes nothing."""
    task, lists = task_of(toy_root, dtype=torch.float32), lists_of(toy_root, shots=(1,), runs=1)
    (expected,) = evaluate_lists(task, engine_of(tmp_path), lists)[1]
    run, seen, before = Engine.run, set(), tf32()

    def looked_at(self, group):
        seen.add(tf32())
        return run(self, group)

    monkeypatch.setattr(Engine, "run", looked_at)
    (found,) = evaluate_lists(task, engine_of(tmp_path, precision=precision), lists)[1]
    assert np.array_equal(found.counts, expected.counts)
    assert seen == {(precision == "tf32",) * 2}
    assert tf32() == before


@pytest.mark.parametrize("name", METHODS)
def test_autocast_changes_little(toy_root, tmp_path, name):
    task, lists = task_of(toy_root, name, dtype=torch.float32), lists_of(toy_root, shots=(1,), runs=1)
    (usual,) = evaluate_lists(task, engine_of(tmp_path), lists)[1]
    (half,) = evaluate_lists(task, engine_of(tmp_path, precision="bf16"), lists)[1]
    # The matcher's decisions are of whole clusters, which may all stay.
    assert moved(usual, half) < 0.05 if name == "matcher" else 0 < moved(usual, half) < 0.05


@pytest.mark.parametrize("name", ["baseline", "panet"])
def test_features_in_bfloat16_change_little(toy_root, tmp_path, name):
    task, lists = task_of(toy_root, name, dtype=torch.float32), lists_of(toy_root, shots=(1,), runs=1)
    (usual,) = evaluate_lists(task, engine_of(tmp_path), lists)[1]
    (half,) = evaluate_lists(task, engine_of(tmp_path, features_dtype="bfloat16"), lists)[1]
    assert 0 < moved(usual, half) < 0.02


def moved(one, other):
    """Of all counted pixels, the share by which intersections of the foreground differ."""
    return np.abs(one.counts[:, 1, 0] - other.counts[:, 1, 0]).sum() / one.counted.sum()


def test_svf_is_merged_while_it_runs_and_no_more_after(toy_root, tmp_path):
    task, lists = task_of(toy_root), lists_of(toy_root, runs=1, episodes=8)
    svf.decompose(task.model.backbone, include=[r"^layer[34]\."])
    with torch.no_grad():
        for _, s in svf.singular_values(task.model.backbone):
            s.mul_(1 + 0.1 * torch.cos(torch.arange(s.shape[-1])))
    balance(task, lists[1][0])
    seen = []
    task.model.backbone.layer4.register_forward_hook(lambda *_: seen.append(all(m.merged for _, m in layers)))
    layers = list(svf.layers(task.model))
    evaluated = evaluate_lists(task, engine_of(tmp_path), lists)
    assert seen
    assert all(seen)
    assert not any(layer.merged for _, layer in layers)
    compare(task, lists, evaluated)


@pytest.mark.parametrize("changes", [{"cache_gb": 0.0}, {"cache_gb": 3e-4}, {"batch_size": 1}, {"workers": 2}])
def test_limits_and_batches_change_nothing(toy_root, tmp_path, changes):
    task, lists = task_of(toy_root, "bam", shot=3), lists_of(toy_root, episodes=12)
    (usual, _), (found, _) = (evaluate_lists(task, engine_of(tmp_path, **how), lists)[1] for how in ({}, changes))
    assert np.array_equal(found.counts, usual.counts)
    assert not (tmp_path / "features").exists()
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------------------------------------------------------------
# Shots


def test_each_support_votes(toy_root, tmp_path):
    task, lists = task_of(toy_root, shots="vote"), lists_of(toy_root)
    (table, _), plain_task = (
        evaluate_lists(task, engine_of(tmp_path), lists)[3],
        replace(task, protocol=protocol()),
    )
    make = EvalEpisodes(task.split, lists[3][0], task.transform)
    found = {spec: said for spec, said, _ in predicted(task, engine_of(tmp_path), lists[3][0])}
    for spec in lists[3][0].specs[:6]:
        masks = []
        for k in range(3):
            one = replace(spec, supports=spec.supports[k : k + 1])
            made = EvalEpisodes(task.split, replace(lists[3][0], shot=1, specs=(one,)), task.transform)(0)
            with torch.no_grad():
                logits = task.model(as_float(made.episode, torch.float64)).logits
            masks.append(mask_at_label(logits, made, plain_task.protocol))
        assert torch.equal(found[spec], vote(torch.stack(masks)))
    assert len(table) == len(make.episodes)


@pytest.mark.parametrize("name", ["baseline", "bam"])
def test_mean_takes_the_mean_of_the_shots(toy_root, tmp_path, name):
    """A baseline sums and a BAM weights its shots; both can average, and do so for the evaluation alone."""
    task, lists = task_of(toy_root, name, shot=3, shots="mean"), lists_of(toy_root, runs=1)
    (table,) = evaluate_lists(task, engine_of(tmp_path), lists)[3]
    (usual,) = evaluate_lists(replace(task, protocol=protocol()), engine_of(tmp_path), lists)[3]
    assert not np.array_equal(table.counts, usual.counts)
    assert task.model.shots == "method"
    task.model.shots = "mean"
    assert np.array_equal(table.counts, plain_counts(task, lists[3][0]))


# ---------------------------------------------------------------------------------------------------------------------
# What is done, and how often


def work_of(monkeypatch, task):
    """Lists that fill as the engine works: images encoded, one for each pair compared, and episodes of each segmentation."""
    encoded, compared, segmented = [], [], []
    encode, compare_ = ImageFeatures._encode, type(task.model).compare

    def count_encoded(self, roles, loaded):
        encoded.extend(keys[0].image for keys in roles)
        return encode(self, roles, loaded)

    def count_compared(self, query, support):
        compared.append(1)
        return compare_(self, query, support)

    monkeypatch.setattr(ImageFeatures, "_encode", count_encoded)
    monkeypatch.setattr(type(task.model), "compare", count_compared)
    task.model.classifier.register_forward_hook(lambda _, inputs, __: segmented.append(len(inputs[0])))
    return encoded, compared, segmented


def test_every_image_is_encoded_once_and_every_pair_compared_once(toy_root, tmp_path, monkeypatch):
    task, lists = task_of(toy_root), lists_of(toy_root, shots=(1, 3), runs=3, episodes=80)
    encoded, compared, segmented = work_of(monkeypatch, task)
    evaluate_lists(task, engine_of(tmp_path), lists)
    specs = [spec for runs in lists.values() for episodes in runs for spec in episodes.specs]
    assert sorted(encoded) == sorted({image for spec in specs for image in (spec.query, *spec.supports)})
    assert len(compared) == len({(spec.query, spec.class_id, image) for spec in specs for image in spec.supports})
    assert sum(segmented) == len({(spec.query, spec.class_id, spec.supports) for spec in specs}) < len(specs)


def test_groups_hold_every_episode_once(toy_root):
    lists = lists_of(toy_root, shots=(1, 3), runs=2)
    groups = group_episodes(lists)
    places = [place for group in groups for of_one in group.episodes.values() for place in of_one]
    assert sorted(places) == [(shot, run, number) for shot in (1, 3) for run in (0, 1) for number in range(25)]
    for group in groups:
        for images, of_one in group.episodes.items():
            for place in of_one:
                spec = lists[place.lists][place.run][place.number]
                assert (spec.query, spec.class_ids, spec.supports) == (group.query.image, group.class_ids, images)
    assert [group.class_ids for group in groups] == sorted(group.class_ids for group in groups)


def test_a_support_does_not_know_the_order_of_the_ways(toy_root):
    groups = group_episodes(lists_of(toy_root, shots=(2,), way=2, episodes=80))
    orders = {group.class_ids for group in groups}
    assert any(order != tuple(sorted(order)) for order in orders)
    for group in groups:
        for images in group.episodes:
            supports = group.supports(images)
            assert [s.class_id for s in supports] == [c for c in group.class_ids for _ in range(2)]
            assert {s.masked for s in supports} == {tuple(sorted(group.class_ids))}


def test_roles_come_in_the_order_of_need(toy_root):
    groups = group_episodes(lists_of(toy_root))
    roles = roles_of_images(groups)
    place = {key: image for image, keys in roles.items() for key in keys}
    assert all(key.image == image for key, image in place.items())
    assert set(place) == {key for group in groups for key in group.needs()}
    first = list(dict.fromkeys(key.image for group in groups for key in group.needs()))
    assert list(roles) == first


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_processes_share_all_groups_in_runs_of_neighbours(toy_root, ranks):
    groups = group_episodes(lists_of(toy_root))
    positions = [n for n in range(len(groups)) if n % 5]
    shares = [share(groups, positions, rank, ranks) for rank in range(ranks)]
    assert [p for one in shares for p in one] == positions
    work = [sum(len(groups[p].episodes) + 4 for p in one) for one in shares]
    assert max(work) - min(work) <= 2 * max(len(group.episodes) + 4 for group in groups)


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_the_groups_give_the_outcomes_of_the_whole(toy_root, tmp_path, ranks):
    """In float32, where a batch of other images could move the last digit of a feature."""
    task, lists = task_of(toy_root, "pfenet", dtype=torch.float32), lists_of(toy_root)
    groups = group_episodes(lists)
    whole = {position: counts for position, counts, _ in Engine(task, engine_of(tmp_path), groups, range(len(groups)))}
    found = {}
    for rank in range(ranks):
        positions = share(groups, range(len(groups)), rank, ranks)
        found |= {p: counts for p, counts, _ in Engine(task, engine_of(tmp_path), groups, positions)}
    assert found.keys() == whole.keys()
    for position, counts in whole.items():
        assert np.array_equal(found[position].prediction, counts.prediction)


# ---------------------------------------------------------------------------------------------------------------------
# Going on after a kill


class Killed(Exception):
    pass


def killed_after(monkeypatch, groups):
    """The next evaluation ends in the middle."""
    run = Engine.run
    left = iter(range(groups))

    def some(self, group):
        if next(left, None) is None:
            raise Killed
        return run(self, group)

    monkeypatch.setattr(Engine, "run", some)


@pytest.mark.parametrize("name", ["pfenet", "bam"])
def test_a_killed_evaluation_goes_on(toy_root, tmp_path, monkeypatch, name):
    changes = {"novel_threshold": 0.3} if name == "bam" else {}
    task, lists = task_of(toy_root, name, shot=3, **changes), lists_of(toy_root)
    usual = evaluate_lists(task, engine_of(tmp_path), lists)
    with monkeypatch.context() as patch:
        killed_after(patch, 7)
        with pytest.raises(Killed):
            evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)
    (path,) = tmp_path.glob("finished-*.jsonl")
    with path.open("a") as file:
        file.write('\n{"subject": "x", "position": 9, "cou')  # a line that the kill cut
    done = []
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, group: done.append(group) or run(self, group))
    again = evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)
    assert len(done) == len(group_episodes(lists)) - 7
    for shot, tables in usual.items():
        for one, other in zip(tables, again[shot], strict=True):
            assert np.array_equal(one.counts, other.counts)
            for parts, others in ((one.further, other.further), (one.base, other.base)):
                assert parts.keys() == others.keys()
                assert all(np.array_equal(parts[key], others[key]) for key in parts)
            assert bool(one.base) == (name == "bam")


def test_the_finished_work_of_another_evaluation_is_refused(toy_root, tmp_path):
    task, lists = task_of(toy_root), lists_of(toy_root, episodes=5)
    evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)
    evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)  # the same goes
    torch.nn.init.ones_(task.model.classifier[0].weight)
    with pytest.raises(DataError, match=r"finished-0\.jsonl: holds episodes of another evaluation"):
        evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The cache of features and the steps on a device

CPU = torch.device("cpu")


def cache_of(folder, uses, *limits, dtype=None):
    return FeatureCache(CPU, limits, folder, uses.__getitem__, dtype)


def test_what_is_needed_last_goes_to_disk(tmp_path):
    uses = {"a": 3, "b": 1, "c": 2}
    features = {name: {"x": torch.full((1, 10), float(n))} for n, name in enumerate(uses)}
    folder = tmp_path / "features"
    with closing(cache_of(folder, uses, 80, 0)) as cache:
        for name in uses:
            cache[name] = features[name]
            assert cache.tiers[0].bytes <= 80
        assert len(list(folder.iterdir())) == 1
        assert set(cache.tiers[0].features) == {"b", "c"}
        for name in uses:
            assert torch.equal(cache[name]["x"], features[name]["x"])
            assert cache.tiers[0].bytes <= 80
        for name in uses:
            cache.drop(name)
            assert name not in cache
        assert cache.tiers[0].bytes == 0
        assert not list(folder.iterdir())
    assert not folder.exists()


def test_three_tiers_each_keep_what_is_needed_sooner(tmp_path, monkeypatch):
    """As on a GPU: what does not fit on the device goes to host memory, and what does not fit there to disk."""
    monkeypatch.setattr(
        FeatureCache, "_to_host", lambda _, value: value.clone()
    )  # there is nothing to pin without a GPU
    uses = dict(zip("abcdef", (6, 2, 4, 1, 5, 3)))
    features = {name: {"x": torch.full((1, 10), float(n))} for n, name in enumerate(uses)}
    with closing(cache_of(tmp_path / "features", uses, 80, 80)) as cache:
        for name in uses:
            cache[name] = features[name]
        assert [set(tier.features) for tier in cache.tiers] == [{"d", "b"}, {"f", "c"}]
        for name in sorted(uses, key=uses.get):
            uses[name] = 0  # as it is used now
            assert torch.equal(cache[name]["x"], features[name]["x"])
            assert all(tier.bytes <= 80 for tier in cache.tiers)
            cache.drop(name)
        assert [tier.bytes for tier in cache.tiers] == [0, 0]


def test_features_are_stored_in_bfloat16_and_given_back_as_they_came(tmp_path):
    with closing(cache_of(tmp_path / "features", {"a": 0}, 10**9, 0, dtype=torch.bfloat16)) as cache:
        x, label = torch.randn(1, 1000), torch.randint(0, 255, (1, 50), dtype=torch.uint8)
        cache["a"] = {"x": x, "label": label}
        assert cache.tiers[0].bytes == 2 * 1000 + 50
        assert torch.equal(cache["a"]["x"], x.bfloat16().float())
        assert torch.equal(cache["a"]["label"], label)


def test_a_row_does_not_keep_its_batch(tmp_path):
    batch = torch.zeros(100, 1000)
    with closing(cache_of(tmp_path / "features", {"a": 0}, 10**9, 0)) as cache:
        cache["a"] = {"x": batch[3:4]}
        assert cache["a"]["x"].untyped_storage().nbytes() == 4000


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "features").write_text("a file")
    cache = cache_of(tmp_path / "features", {"a": 0}, 0, 0)
    with pytest.raises(DataError, match=r"features/0\.pt: 40 bytes of encoded images do not fit there .*cache_gb"):
        cache["a"] = {"x": torch.zeros(10)}


@pytest.mark.parametrize("name", METHODS)
def test_supports_compared_in_batches_as_one_by_one(toy_root, name):
    """As a GPU does it: kept supports of different sizes, filled up."""
    task = task_of(toy_root, name, shot=3)
    episode = as_float(EvalEpisodes(task.split, lists_of(toy_root)[3][0], task.transform)(0).episode, torch.float64)
    alone = Inference(task.model, CPU, "float32")
    batched = Inference(task.model, CPU, "float32", batch_size=2)
    batched.device = torch.device("meta")  # not compared one by one
    with alone.running():
        images = torch.cat([episode.query_image, episode.support_images[0]])
        (query,), supports = alone.encode(images, episode.support_masks[0], torch.arange(1), torch.arange(1, 4))
        expected, found = (one.compare(query, supports) for one in (alone, batched))
    assert len(found) == 3
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-12)
