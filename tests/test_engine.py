"""The engine's counts are those of a plain loop, whatever is cached, shared, spilled or done before."""

import multiprocessing
from dataclasses import replace

import pytest
import torch

from fss_svf import svf
from fss_svf.data.augment import EvalTransform
from fss_svf.data.episodes import make_sampler, split_classes
from fss_svf.data.manifest import EpisodeList
from fss_svf.data.toy import Toy
from fss_svf.errors import DataError
from fss_svf.evaluation.engine import Engine, Runner, Task
from fss_svf.evaluation.runs import evaluate_lists, predicted
from fss_svf.evaluation.store import CodeStore
from fss_svf.evaluation.vote import vote
from fss_svf.evaluation.work import group_episodes, roles_of_images, share
from tests import test_methods
from tests.conftest import toy_options
from tests.pixels import assert_hardly_any_turned
from tests.plain_evaluation import EvalEpisodes, as_float, mask_at_label, plain_counts
from tests.test_plan import protocol
from tests.test_precision import tf32

pytestmark = pytest.mark.numeric

SIZE = 65
METHODS = ("baseline", "pfenet", "bam", "panet", "prototype")


def task_of(root, name="baseline", shot=1, way=1, dtype=torch.float64, **changes):
    """A model of random weights, whose prediction holds both background and foreground, on the toy dataset."""
    model = test_methods.model(name, shot=shot).eval().to(dtype)
    if name == "bam":  # two base classes beside the first's novel ones
        model.fit_state({"base.cls.4.bias": torch.zeros(16)})
        model.eval().to(dtype)
    split = Toy(toy_options(root)).split("val")
    chosen = protocol(**{"label": "original", "resize": "pad", **changes})
    base = split_classes(split.index, toy_options(root), 0, "train") if name == "bam" else None
    task = Task(model, split, "mask", EvalTransform(SIZE, chosen.resize, chosen.pad), chosen, base)
    if hasattr(model, "classifier"):
        balance(task, lists_of(root)[1][0])
    return task


@torch.no_grad()
def balance(task, episodes):
    """Half of the pixels foreground: a head of random weights would say the same of all.

    The edge lies between two pixels' values, not on one: in float64 no rounding then turns a pixel.
    """
    make, bias = EvalEpisodes(task.split, episodes, task.transform), task.model.classifier[-1].bias
    differences = []
    for number in range(6):
        prediction = task.model(as_float(make(number).episode, bias.dtype))
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
    samplers = [make_sampler(index, options, 0, "val", max(shots), 5 + run, "in_order", way=way) for run in range(runs)]
    drawn = [EpisodeList.drawn(sampler, episodes) for sampler in samplers]
    return {shot: [one.first_supports(shot) for one in drawn] for shot in shots}


def engine_of(folder, **changes):
    values = {"device": torch.device("cpu"), "batch_size": 4, "workers": 0, "cache_gb": 1.0, "folder": folder / "codes"}
    return Engine(**{**values, **changes})


def compare(task, lists, evaluated):
    for shot, runs in evaluated.runs.items():
        for run, episodes in zip(runs, lists[shot], strict=True):
            assert run.episodes == plain_counts(task, episodes)
            # Some pixels are said to be the object and some are not, or a comparison would say little.
            said = [count for count in run.episodes if count.foreground[1] < count.counted]
            assert len(said) > 3
            assert sum(count.foreground[0] for count in said) > 100
            for name, counts in run.others.items():
                assert counts == plain_counts(task, episodes, name)


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
    task, lists = task_of(toy_root, name, shot=3, label=label, resize=resize), lists_of(toy_root, episodes=15)
    compare(task, lists, evaluate_lists(task, engine_of(tmp_path), lists))
    assert not (tmp_path / "codes").exists()


def test_counts_of_several_ways_equal_the_plain_loop(toy_root, tmp_path):
    task, lists = task_of(toy_root, "panet"), lists_of(toy_root, shots=(1, 2), way=2, episodes=60)
    evaluated = evaluate_lists(task, engine_of(tmp_path), lists)
    compare(task, lists, evaluated)
    assert {len(count.classes) for count in evaluated.runs[1][0].episodes} == {1, 2}


@pytest.mark.parametrize("annotation", ["bbox", "scribble"])
def test_supports_are_annotated_as_in_the_plain_loop(toy_root, tmp_path, annotation):
    task, lists = replace(task_of(toy_root), annotation=annotation), lists_of(toy_root, runs=1)
    compare(task, lists, evaluate_lists(task, engine_of(tmp_path), lists))


def test_in_float32_hardly_a_pixel_turns(toy_root, tmp_path):
    task, lists = task_of(toy_root, "pfenet", dtype=torch.float32), lists_of(toy_root, episodes=40)
    ours = evaluate_lists(task, engine_of(tmp_path), lists).runs
    found = [count for runs in ours.values() for run in runs for count in run.episodes]
    assert_hardly_any_turned(found, [c for runs in lists.values() for e in runs for c in plain_counts(task, e)])


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_precision_is_the_engines_own(toy_root, tmp_path, monkeypatch, precision):
    """Whatever training set; on a CPU TF32 changes nothing."""
    task, lists = task_of(toy_root, dtype=torch.float32), lists_of(toy_root, shots=(1,), runs=1)
    expected = evaluate_lists(task, engine_of(tmp_path), lists).runs[1][0].episodes
    run, seen, before = Runner._run, set(), tf32()

    def looked_at(self, group):
        seen.add(tf32())
        return run(self, group)

    monkeypatch.setattr(Runner, "_run", looked_at)
    (found,) = evaluate_lists(task, engine_of(tmp_path, precision=precision), lists).runs[1]
    assert found.episodes == expected
    assert seen == {(precision == "tf32",) * 2}
    assert tf32() == before


@pytest.mark.parametrize("name", METHODS)
def test_autocast_changes_little(toy_root, tmp_path, name):
    task, lists = task_of(toy_root, name, dtype=torch.float32), lists_of(toy_root, shots=(1,), runs=1)
    (usual,) = evaluate_lists(task, engine_of(tmp_path), lists).runs[1]
    (half,) = evaluate_lists(task, engine_of(tmp_path, precision="bf16"), lists).runs[1]
    assert half.episodes != usual.episodes
    counted = sum(count.counted for count in usual.episodes)
    pairs = zip(usual.episodes, half.episodes, strict=True)
    assert sum(abs(a.foreground[0] - b.foreground[0]) for a, b in pairs) < 0.05 * counted


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
    usual = evaluate_lists(task, engine_of(tmp_path), lists).runs
    assert evaluate_lists(task, engine_of(tmp_path, **changes), lists).runs[1][0].episodes == usual[1][0].episodes
    assert not (tmp_path / "codes").exists()
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------------------------------------------------------------
# Shots


def test_each_support_votes(toy_root, tmp_path):
    task, lists = task_of(toy_root, shots="vote"), lists_of(toy_root)
    (run, _), plain_task = evaluate_lists(task, engine_of(tmp_path), lists).runs[3], replace(task, protocol=protocol())
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
    assert len(run.episodes) == len(make.episodes)


@pytest.mark.parametrize("name", ["baseline", "bam"])
def test_mean_takes_the_mean_of_the_shots(toy_root, tmp_path, name):
    """A baseline sums and a BAM weights its shots; both can average, and do so for the evaluation alone."""
    task, lists = task_of(toy_root, name, shot=3, shots="mean"), lists_of(toy_root, runs=1)
    evaluated = evaluate_lists(task, engine_of(tmp_path), lists)
    own = evaluate_lists(replace(task, protocol=protocol()), engine_of(tmp_path), lists)
    assert evaluated.runs[3][0].episodes != own.runs[3][0].episodes
    assert task.model.shots == "own"
    task.model.shots = "mean"
    assert evaluated.runs[3][0].episodes == plain_counts(task, lists[3][0])


# ---------------------------------------------------------------------------------------------------------------------
# What is done, and how often


def test_every_image_is_encoded_once_and_every_pair_compared_once(toy_root, tmp_path, monkeypatch):
    task, lists = task_of(toy_root), lists_of(toy_root, shots=(1, 3), runs=3, episodes=80)
    encoded, compared, segmented = [], [], []
    encode, compare_ = Runner._encode, type(task.model).compare

    def count_encoded(self, roles, loaded):
        encoded.extend(image.image for image in roles)
        return encode(self, roles, loaded)

    def count_compared(self, query, support):
        compared.append(1)
        return compare_(self, query, support)

    monkeypatch.setattr(Runner, "_encode", count_encoded)
    monkeypatch.setattr(type(task.model), "compare", count_compared)
    task.model.classifier.register_forward_hook(lambda _, inputs, __: segmented.append(len(inputs[0])))
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
                spec = lists[place.shot][place.run][place.number]
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
            assert {s.class_ids for s in supports} == {tuple(sorted(group.class_ids))}


def test_roles_come_in_the_order_of_need(toy_root):
    groups = group_episodes(lists_of(toy_root))
    roles = roles_of_images(groups)
    place = {key: n for n, image in enumerate(roles) for key in image}
    assert len({image.image for image in roles}) == len(roles)
    assert set(place) == {key for group in groups for key in group.needs()}
    first = list(dict.fromkeys(key.image for group in groups for key in group.needs()))
    assert [image.image for image in roles] == first


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
    """In float32, where a batch of other images could move the last digit of a code."""
    task, lists = task_of(toy_root, "pfenet", dtype=torch.float32), lists_of(toy_root)
    groups = group_episodes(lists)
    whole = dict(Runner(task, engine_of(tmp_path), groups, range(len(groups))))
    found = {}
    for rank in range(ranks):
        found.update(Runner(task, engine_of(tmp_path), groups, share(groups, range(len(groups)), rank, ranks)))
    assert found == whole


# ---------------------------------------------------------------------------------------------------------------------
# Going on after a kill


class Killed(Exception):
    pass


def killed_after(monkeypatch, groups):
    """The next evaluation ends in the middle."""
    run = Runner._run
    left = iter(range(groups))

    def some(self, group):
        if next(left, None) is None:
            raise Killed
        return run(self, group)

    monkeypatch.setattr(Runner, "_run", some)


@pytest.mark.parametrize("name", ["pfenet", "bam"])
def test_a_killed_evaluation_goes_on(toy_root, tmp_path, monkeypatch, name):
    changes = {"novel_threshold": 0.3} if name == "bam" else {}
    task, lists = task_of(toy_root, name, shot=3, **changes), lists_of(toy_root)
    usual = evaluate_lists(task, engine_of(tmp_path), lists).runs
    with monkeypatch.context() as patch:
        killed_after(patch, 7)
        with pytest.raises(Killed):
            evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)
    (path,) = tmp_path.glob("finished-*.jsonl")
    with path.open("a") as file:
        file.write('\n{"subject": "x", "position": 9, "cou')  # a line that the kill cut
    done = []
    run = Runner._run
    monkeypatch.setattr(Runner, "_run", lambda self, group: done.append(group) or run(self, group))
    again = evaluate_lists(task, engine_of(tmp_path), lists, tmp_path).runs
    assert len(done) == len(group_episodes(lists)) - 7
    for shot, runs in usual.items():
        for one, other in zip(runs, again[shot], strict=True):
            assert one.episodes == other.episodes
            assert one.others == other.others
            if name == "bam":
                assert one.base.scores((1, 2), zero=False) == other.base.scores((1, 2), zero=False)


def test_the_finished_work_of_another_evaluation_is_refused(toy_root, tmp_path):
    task, lists = task_of(toy_root), lists_of(toy_root, episodes=5)
    evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)
    evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)  # the same goes
    torch.nn.init.ones_(task.model.classifier[0].weight)
    with pytest.raises(DataError, match=r"finished-0\.jsonl: holds episodes of another evaluation"):
        evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The store


def store_of(folder, limit, uses):
    return CodeStore(limit, folder, uses.__getitem__)


def test_what_is_needed_last_goes_to_disk(tmp_path):
    uses = {"a": 3, "b": 1, "c": 2}
    code = {name: {"x": torch.full((1, 10), float(n))} for n, name in enumerate(uses)}
    with store_of(tmp_path / "codes", 80, uses) as store:
        for name in uses:
            store[name] = code[name]
            assert store.bytes <= 80
        assert len(list((tmp_path / "codes").iterdir())) == 1
        assert set(store._memory) == {"b", "c"}
        for name in uses:
            assert torch.equal(store[name]["x"], code[name]["x"])
        for name in uses:
            store.drop(name)
            assert name not in store
        assert store.bytes == 0
        assert not list((tmp_path / "codes").iterdir())
    assert not (tmp_path / "codes").exists()


def test_a_row_does_not_keep_its_batch(tmp_path):
    batch = torch.zeros(100, 1000)
    with store_of(tmp_path / "codes", 10**9, {"a": 0}) as store:
        store["a"] = {"x": batch[3:4]}
        assert store["a"]["x"].untyped_storage().nbytes() == 4000


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "codes").write_text("a file")
    store = store_of(tmp_path / "codes", 0, {"a": 0})
    with pytest.raises(DataError, match=r"codes/0\.pt: 40 bytes of encoded images do not fit there .*cache_gb"):
        store["a"] = {"x": torch.zeros(10)}
