"""Several classes at once by one-way predictions: the rule, the engine's counts, the verb and its refusals.

Expected values are loops over pixels in float64, written from the rule's words and not from its code.
"""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import fss_svf
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError, DataError
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.base_classes import require_base_classes
from fss_svf.evaluation.runs import evaluate_lists
from fss_svf.evaluation.ways import choose_rule, foreground_odds, join_ways
from tests.conftest import SMALL_TOY, TOY
from tests.evaluation.own_model import OwnModel
from tests.evaluation.test_engine import engine_of, lists_of, task_of, work_of
from tests.evaluation.test_plan import protocol
from tests.methods import test_methods
from tests.plain_evaluation import EvalEpisodes, as_float

pytestmark = pytest.mark.numeric

# ---------------------------------------------------------------------------------------------------------------------
# The rule


def by_loops(probabilities):
    """(N, H, W) foreground probabilities of one episode to labels (H, W), pixel by pixel."""
    ways, height, width = probabilities.shape
    labels = np.zeros((height, width), int)
    for y in range(height):
        for x in range(width):
            best = 0.5
            for way in range(ways):
                if probabilities[way, y, x] > best:  # a later way must be better, not as good
                    best, labels[y, x] = probabilities[way, y, x], way + 1
    return labels


@pytest.mark.parametrize("ways", [1, 2, 5])
def test_labels_are_those_of_loops_over_pixels(ways):
    torch.manual_seed(ways)
    # In steps of 1/8: many pixels lie at 0.5 and many ways are equal.
    foreground = torch.randint(0, 9, (3, ways, 12, 9)).double() / 8
    labels = join_ways(foreground)
    assert (labels.dtype, labels.shape) == (torch.uint8, (3, 12, 9))
    for of_episode, found in zip(foreground, labels):
        assert np.array_equal(by_loops(of_episode.numpy()), found.numpy())
    assert set(labels.unique().tolist()) == set(range(ways + 1))


def test_log_odds_give_the_same_labels_and_still_differ_where_probabilities_are_one():
    torch.manual_seed(0)
    logits = torch.randn(6, 2, 12, 9, dtype=torch.float64)
    odds = foreground_odds(logits)
    apart = join_ways(odds.unflatten(0, (2, 3)), threshold=0)
    assert torch.equal(apart, join_ways(logits.softmax(1)[:, 1].unflatten(0, (2, 3))))
    assert torch.equal(odds > 0, logits.argmax(1) == 1)
    sure = torch.tensor([[0.0, 30.0], [0.0, 40.0]])[..., None, None]  # both are 1 in float32
    assert join_ways(sure.softmax(1)[None, :, 1]).item() == 1
    assert join_ways(foreground_odds(sure)[None], threshold=0).item() == 2


def test_the_rule_is_joint_where_the_method_can():
    panet, baseline = (test_methods.model(name) for name in ("panet", "baseline"))
    found = {
        (name, way, rule): choose_rule(model, way, rule)
        for name, model in (("panet", panet), ("baseline", baseline))
        for way, rule in ((1, "auto"), (2, "auto"), (2, "argmax"))
    }
    assert {key[0] + str(key[1]) + key[2]: rule for key, rule in found.items()} == {
        "panet1auto": None,
        "panet2auto": "joint",
        "panet2argmax": "argmax",
        "baseline1auto": None,
        "baseline2auto": "argmax",
        "baseline2argmax": "argmax",
    }
    assert choose_rule(panet, 3, "joint") == "joint"
    with pytest.raises(ConfigError, match=r"way_rule=joint: Baseline segments one class at a time; leave way_rule out"):
        choose_rule(baseline, 2, "joint")
    for rule in ("argmax", "joint"):
        with pytest.raises(ConfigError, match=rf"way_rule={rule}: way=1 has no classes to join; leave way_rule out"):
            choose_rule(panet, 1, rule)


def test_base_classes_are_fused_with_one_novel_class():
    model = test_methods.model("bam")
    require_base_classes(protocol(novel_threshold=0.9), model, "bam", way=1)
    require_base_classes(protocol(), model, "bam", way=2)
    with pytest.raises(
        ConfigError, match=r"novel_threshold fuses base classes with one novel class, got way=2; say way=1"
    ):
        require_base_classes(protocol(novel_threshold=0.9), model, "bam", way=2)


# ---------------------------------------------------------------------------------------------------------------------
# The engine


def one_way_probabilities(model, episode, name, size, chosen):
    """(N, H, W): each class alone, by an episode of its own, at the size that is counted at."""
    found = []
    for way in range(episode.way):
        alone = Episode(episode.query_image, episode.support_images[:, way], episode.support_masks[:, way])
        prediction = model(alone)
        logits = at_label(prediction.aux[name] if name else prediction.logits, size, chosen)[0].numpy()
        shifted = np.exp(logits - logits.max(0))
        found.append(shifted[1] / shifted.sum(0))
    return np.stack(found)


def joint_labels(model, episode, size, chosen):
    """(H, W): the largest of background and all classes, pixel by pixel."""
    logits = at_label(model(episode).logits, size, chosen)[0].tolist()
    rows, columns = range(len(logits[0])), range(len(logits[0][0]))
    return np.array([[max(range(len(logits)), key=lambda c: logits[c][y][x]) for x in columns] for y in rows])


def counts_by_loops(labels, truth, measured, classes):
    """(2 + C, 2) as PANet counts: any class against background, and each class that the query holds."""
    counts = np.zeros((2 + len(classes), 2), int)
    for found, true in zip(labels.flatten().tolist(), truth.flatten().tolist()):
        if true == 255:
            continue
        counts[0] += (found == 0 and true == 0), (found == 0 or true == 0)
        counts[1] += (found > 0 and true > 0), (found > 0 or true > 0)
        for way, class_id in measured.items():
            counts[2 + classes.index(class_id)] += (found == way and true == way), (found == way or true == way)
    return counts


CASES = [
    *((name, "argmax", 2, label) for name, label in (("baseline", "original"), ("pfenet", "resized"))),
    *((name, "argmax", 5, "resized") for name in ("baseline", "pfenet", "panet", "prototype", "bam")),
    *((name, "argmax", 2, "resized") for name in ("panet", "prototype", "bam", "hsnet", "ssp")),
    *((name, "joint", way, "resized") for name, way in (("panet", 2), ("panet", 5), ("ssp", 2))),
]


@pytest.mark.parametrize(("name", "rule", "way", "label"), CASES)
@torch.no_grad()
def test_counts_equal_loops_over_pixels(toy_root, tmp_path, name, rule, way, label):
    task = replace(task_of(toy_root, name, shot=2, label=label), way_rule=rule)
    lists = lists_of(toy_root, shots=(1, 2) if way == 2 else (1,), runs=1, episodes=3, way=way)
    evaluated = evaluate_lists(task, engine_of(tmp_path), lists)
    for shot, (episodes,) in lists.items():
        (table,), make, values = evaluated[shot], EvalEpisodes(task.split, episodes, task.transform), set()
        for number, spec in enumerate(episodes.specs):
            one = make(number)
            episode, size = as_float(one.episode, torch.float64), tuple(one.original_mask.shape)
            truth = episode.query_mask[0] if label == "resized" else one.original_mask
            for output, counts in {"": table.counts, **table.further}.items():
                if rule == "argmax":
                    labels = by_loops(one_way_probabilities(task.model, episode, output, size, task.protocol))
                else:
                    labels = joint_labels(task.model, episode, size, task.protocol)
                expected = counts_by_loops(labels, truth.numpy(), episodes.measured(spec), task.classes)
                assert np.array_equal(counts[number], expected)
                values |= set(labels.flat)
        assert len(values) > 2  # several classes, or the comparison says little


@torch.no_grad()
def test_base_classes_are_measured_beside_several_ways(toy_root, tmp_path):
    """What BAM's base learner says of a query hangs on no way; its counts are those of the query, once an episode."""
    task, lists = task_of(toy_root, "bam", label="resized"), lists_of(toy_root, shots=(1,), runs=1, episodes=4, way=2)
    ((table,),) = evaluate_lists(replace(task, way_rule="argmax"), engine_of(tmp_path), lists).values()
    make, expected = EvalEpisodes(task.split, lists[1][0], task.transform), np.zeros((1 + len(task.base), 2), int)
    for number, spec in enumerate(lists[1][0].specs):
        images = as_float(make(number).episode, torch.float64).query_image
        found = task.model.segment_base(task.model.encode_query(images), images.shape[-2:])[0].argmax(0).numpy()
        label = task.transform(task.split.image(spec.query), task.split.label(spec.query))[1]
        for n, class_id in enumerate((None, *task.base)):
            true = (label == class_id) if n else ~np.isin(label, (255, *task.base))
            said = (found == n) & (label != 255)
            expected[n] += (said & true).sum(), (said | true).sum()
    assert np.array_equal(table.base["base"][: len(expected)], expected)
    assert set(table.base) == {"base"}


def test_every_image_is_encoded_once_and_every_pair_compared_once(toy_root, tmp_path, monkeypatch):
    task = replace(task_of(toy_root), way_rule="argmax")
    lists = lists_of(toy_root, shots=(1, 3), runs=2, episodes=30, way=2)
    encoded, compared, segmented = work_of(monkeypatch, task)
    evaluate_lists(task, engine_of(tmp_path), lists)
    specs = [spec for runs in lists.values() for episodes in runs for spec in episodes.specs]
    assert sorted(encoded) == sorted({image for spec in specs for image in (spec.query, *spec.supports)})
    pairs = {(s.query, s.class_ids, i // s.shot, image) for s in specs for i, image in enumerate(s.supports)}
    assert len(compared) == len(pairs)
    assert sum(segmented) == 2 * len({(spec.query, spec.class_ids, spec.supports) for spec in specs})
    assert max(segmented) == engine_of(tmp_path).batch_size


def test_finished_work_of_another_rule_is_refused(toy_root, tmp_path):
    task, lists = task_of(toy_root, "panet"), lists_of(toy_root, shots=(1,), runs=1, episodes=3, way=2)
    for rule in ("joint", "joint"):
        evaluate_lists(replace(task, way_rule=rule), engine_of(tmp_path), lists, tmp_path)
    with pytest.raises(DataError, match=r"finished-0\.jsonl: holds episodes of another evaluation"):
        evaluate_lists(replace(task, way_rule="argmax"), engine_of(tmp_path), lists, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The verb and the Python API


FEW = ("protocol.episodes=12", "protocol.never_drawn=leave_out", "seeds=1", "workers=0", "pictures=1", "size=65")


def test_evaluate_report_and_compare(fss, toy_root, tmp_path):
    toy, found = (*TOY, f"dataset.root={toy_root}"), {}
    for name, more in (
        ("prototype", ("method=prototype",)),
        ("joint", ("method=panet",)),
        ("argmax", ("method=panet", "way_rule=argmax")),
    ):
        status, _, err = fss("evaluate", *toy, "backbone=tiny", *FEW, *more, "way=2", f"hydra.run.dir=outputs/{name}")
        assert status == 0, err
        found[name] = json.loads((tmp_path / "outputs" / name / "result.json").read_text())
    rules = {name: (result["way"], result["way_rule"]) for name, result in found.items()}
    assert rules == {"prototype": (2, "argmax"), "joint": (2, "joint"), "argmax": (2, "argmax")}
    assert found["joint"]["per_class_counts"] != found["argmax"]["per_class_counts"]
    # Each measures the same: the rule is part of the prediction, as a method is.
    assert len({result["protocol_hash"] for result in found.values()}) == 1
    status, out, err = fss("report", "runs=outputs")
    assert status == 0, err
    for row in ("| panet ", "| panet, way_rule=argmax ", "| prototype, way_rule=argmax "):
        assert row in out
    status, out, err = fss("compare", "a=outputs/joint", "b=outputs/argmax")
    assert status == 0, err
    assert "- b: panet, way_rule=argmax, frozen" in out


def test_a_model_of_ones_own_is_measured_by_either_rule(toy_root):
    """The API's models get whole episodes: of all ways, or by argmax of one."""
    fold = fss_svf.load_dataset("toy", root=toy_root, **SMALL_TOY).fold(0)
    protocol = fss_svf.Protocol.load("svf", episodes=12, never_drawn="leave_out")
    measured = partial(fss_svf.evaluate, fold=fold, protocol=protocol, size=65, way=2, workers=0)
    panet, baseline = (test_methods.model(name).eval().double() for name in ("panet", "baseline"))

    for rule, expected in (("joint", {2}), ("argmax", {1})):
        whole = OwnModel(panet)
        by_call, by_seam = (measured(model, way_rule=rule) for model in (whole, panet))
        assert whole.ways == expected
        assert by_call["way_rule"] == by_seam["way_rule"] == rule
        assert by_call["per_class_counts"] == by_seam["per_class_counts"]
    assert measured(baseline)["way_rule"] == "argmax"
