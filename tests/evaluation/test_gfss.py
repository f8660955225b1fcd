"""Generalized few-shot segmentation (protocol=gfss): its lists, and the engine's counts against a plain loop.

The plain loop labels whole images, in float64 and by the protocol's words; of ours it has the models alone.
"""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import fss_svf
from fss_svf.config import EpisodeFiles
from fss_svf.data.dataset import DatasetOptions
from fss_svf.data.fold import Fold
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.toy import Toy
from fss_svf.data.whole_list import WholeList
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError, DataError
from fss_svf.evaluation.generalized import generalized, parts
from fss_svf.evaluation.metric import count_classes, count_masks, scores
from fss_svf.evaluation.plan import make_plan
from fss_svf.evaluation.runs import evaluate_lists
from tests.conftest import SMALL_TOY, TOY, toy_options
from tests.evaluation.own_model import OwnModel
from tests.evaluation.test_engine import SIZE, engine_of, task_of
from tests.evaluation.test_plan import protocol
from tests.methods import test_methods
from tests.one_line import data_error
from tests.plain_evaluation import as_float

pytestmark = pytest.mark.numeric

WHOLE = {"queries": "every", "classes": "all", "episodes": None, "never_drawn": "leave_out"}

# ---------------------------------------------------------------------------------------------------------------------
# The lists, by hand. Of 8 classes fold 0 tests a and b; 10 pixels make a support.


def fold_of(tmp_path, rows, **options):
    index = Index.from_rows([ImageRow(f"{i}", 9, 9, areas) for i, areas in enumerate(rows)], list("abcdefgh"), "test")
    values = {"class_partition": "contiguous", "min_area": 10, "filter_novel": True, "too_few_images": "error"}
    chosen = DatasetOptions(tmp_path, tmp_path, **{**values, "support_annotation": "mask", **options})
    return index, Fold(chosen, index.class_names, 0)


ROWS = (
    {1: 20},  # 0, 1: a support of a, each
    {1: 10, 3: 9},
    {1: 9},  # 2: too small for a support, a query all the same
    {1: 20, 2: 1},  # 3: a second novel class
    {2: 15, 4: 30},  # 4, 5: of b; the second also shows c
    {2: 15, 3: 40},
    {},  # 6: no class, never a query
    {3: 12, 4: 12},  # 7: of c and d
    {3: 12, 1: 1},  # 8: c beside a novel class
    *({c: 10} for c in (5, 6, 7, 8)),  # 9 to 12
    {4: 10},  # 13
)  # fmt: skip


def test_lists_by_hand(tmp_path):
    index, fold = fold_of(tmp_path, ROWS)
    learner, whole = (WholeList(index, fold, base_needs_supports=needs) for needs in (False, True))
    assert (learner.ways, whole.ways) == ((1, 2), (3, 4, 5, 6, 7, 8, 1, 2))
    assert learner.classes == whole.classes == whole.ways
    assert learner.base == whole.base == (3, 4, 5, 6, 7, 8)
    listed = set(range(14)) - {6}
    of_a, of_d = set(), set()
    for seed in range(20):
        for of in (learner, whole):
            assert set(of.listed.tolist()) == listed
            one, two = of.episodes(1, seed), of.episodes(2, seed)
            for run, shot in ((one, 1), (two, 2)):
                supports = run.specs[0].supports
                assert len(supports) == shot * len(of.ways)
                # Each listed image once, in order, but for the run's own supports.
                assert [spec.query for spec in run.specs] == sorted(listed - set(supports))
                assert [spec.number for spec in run.specs] == list(range(len(run)))
                assert all((s.supports, s.class_ids, s.alone) == (supports, of.ways, True) for s in run.specs)
            assert two.specs[0].first_supports(1).supports == one.specs[0].supports
            place = {c: 2 * of.ways.index(c) for c in of.ways}
            drawn = {c: two.specs[0].supports[place[c] : place[c] + 2] for c in of.ways}
            assert set(drawn[1]) == {0, 1}
            assert set(drawn[2]) == {4, 5}
            if of is whole:
                assert drawn[3] == (7, 7)  # the only one; 5 and 8 show a novel class, 1 too little of c: repeated
                assert set(drawn[4]) == {7, 13}
                assert [drawn[c] for c in (5, 6, 7, 8)] == [(i, i) for i in (9, 10, 11, 12)]
                # The novel classes' supports are those of a method with a base learner.
                assert two.specs[0].supports[-4:] == learner.episodes(2, seed).specs[0].supports
                of_d.add(drawn[4])
            of_a.add(drawn[1])
    assert of_a == {(0, 1), (1, 0)}
    assert of_d == {(7, 13), (13, 7)}


def test_few_candidates_are_repeated_by_random_draws(tmp_path):
    index, fold = fold_of(tmp_path, ROWS)
    fives = [WholeList(index, fold, False).episodes(5, seed).specs[0].supports for seed in range(40)]
    for five in fives:
        assert set(five[:2]) == {0, 1}
        assert set(five[:5]) == {0, 1}
    assert len({five[2:5] for five in fives}) == 8


def test_a_class_without_a_candidate(tmp_path):
    rows = [areas for areas in ROWS if areas not in ({5: 10}, {2: 15, 4: 30}, {2: 15, 3: 40})]
    index, fold = fold_of(tmp_path, rows)
    with data_error(
        "fold 0, val: no image can be a support of e, b: with at least 10 px", "min_area", "too_few_images=skip"
    ):
        WholeList(index, fold, True)
    index, fold = fold_of(tmp_path, [*rows, {5: 3}, {5: 3, 6: 3}], too_few_images="skip")
    whole, learner = (WholeList(index, fold, needs) for needs in (True, False))
    assert (whole.left_out, whole.ways, whole.base) == ((5, 2), (3, 4, 6, 7, 8, 1), (3, 4, 6, 7, 8))
    assert len(index) - 2 not in whole.listed  # holds a class that is left out alone
    assert len(index) - 1 in whole.listed
    # A base learner needs no supports of e.
    assert (learner.left_out, learner.ways, learner.classes) == ((2,), (1,), (3, 4, 5, 6, 7, 8, 1))
    index, fold = fold_of(tmp_path, [{3: 20}, {4: 20}], too_few_images="skip")
    with data_error("no novel class has a possible support"):
        WholeList(index, fold, False)
    index, fold = fold_of(tmp_path, [{1: 20}, {2: 20}], too_few_images="skip")
    with data_error("no base class has a possible support"):
        WholeList(index, fold, True)
    with data_error("each of the 2 listed images is a support", "add images"):
        WholeList(index, fold, False).episodes(1, 0)


def test_plan(tmp_path, caplog):
    index, fold = fold_of(tmp_path, ROWS)
    chosen = protocol(**WHOLE, runs=3)
    plan = make_plan(index, fold, (1, 2), chosen, EpisodeFiles(None, None), None)
    assert (plan.classes, plan.base, plan.way, plan.listed) == ((3, 4, 5, 6, 7, 8, 1, 2), (3, 4, 5, 6, 7, 8), 8, 13)
    # A shot's queries are the same whatever other shot is measured beside it.
    (alone,) = make_plan(index, fold, (1,), chosen, EpisodeFiles(None, None), None).episodes.values()
    assert [run.specs for run in plan.episodes[1]] == [run.specs for run in alone]
    assert [run.seed for run in alone] == [5, 6, 7]
    assert plan.source == {"supports_of": "base and novel classes"}
    assert "4 of 8 classes have no query but supports: e, f, g, h; false positives alone count" in caplog.text
    learner = make_plan(index, fold, (1,), chosen, EpisodeFiles(None, None), None, base_learner=True)
    assert learner.source == {"supports_of": "novel classes"}
    with data_error("4 of 8 classes have no query but supports: e, f, g, h", "never_drawn=leave_out"):
        make_plan(index, fold, (1,), replace(chosen, never_drawn="error"), EpisodeFiles(None, None), None)
    for key, files in (("save", EpisodeFiles(tmp_path / "e", None)), ("load", EpisodeFiles(None, tmp_path / "e"))):
        with pytest.raises(
            ConfigError, match=rf"episodes\.{key}=.*a file holds episodes of one class, not of all classes"
        ):
            make_plan(index, fold, (1,), chosen, files, None)


# ---------------------------------------------------------------------------------------------------------------------
# Counts


def test_counts_of_many_classes_are_those_of_few():
    torch.manual_seed(0)
    predicted, truth = torch.randint(0, 6, (3, 40, 30)), torch.randint(0, 6, (40, 30))
    truth[torch.rand(40, 30) < 0.2] = 255
    found = count_classes(predicted, truth, 5)
    assert torch.equal(found, count_masks(predicted, truth, ways=5))
    assert torch.equal(count_classes(predicted[:1, :, :0], truth[:, :0], 5), torch.zeros(1, 7, 2, dtype=torch.int64))


def test_numbers_of_base_and_novel_classes():
    """By hand: three base classes, of which one has no pixel, and two novel ones."""
    counts = np.array([[[9, 9], [9, 9], [1, 2], [0, 0], [1, 4], [1, 10], [0, 5]], [[1, 1]] * 5 + [[0, 3]] * 2])
    found = scores(counts, zero=False)
    assert generalized(found, 3).miou == pytest.approx([(0.375 + 0.05) / 2, 0.5])
    of = parts(found, 3)
    assert of["base_miou"] == pytest.approx([0.375, 1])
    assert of["novel_miou"] == pytest.approx([0.05, 0])
    assert of["harmonic_mean"] == pytest.approx([2 * 0.375 * 0.05 / 0.425, 0])
    assert parts(scores(np.zeros((1, 7, 2), int), zero=False), 3)["harmonic_mean"] == [0]


def whole_task(root, name, rule, **changes):
    """A task of all classes, and its list."""
    task = task_of(root, name, shot=2, label="resized", **WHOLE, **changes)
    index = task.split.index
    whole = WholeList(index, Fold(toy_options(root), index.class_names, 0), base_needs_supports=name != "bam")
    return replace(task, classes=whole.classes, way_rule=rule), whole


def lists_of(whole, shots=(1, 2), runs=2, queries=4):
    """The same queries of every run, where they are none of its supports."""
    made = {shot: [whole.episodes(shot, 2023 + run) for run in range(runs)] for shot in shots}
    return {
        shot: [replace(run, specs=tuple(replace(s, number=n) for n, s in enumerate(run.specs[:queries]))) for run in of]
        for shot, of in made.items()
    }


@torch.no_grad()
def label_of_image(task, spec, image):
    """(H, W) class numbers of a whole image: the plain loop. Of "base first" too, where there is a base learner."""
    model, shot, split = task.model, spec.shot, task.split

    def supports_of(way):
        pairs = [split.pair(i) for i in spec.supports[way * shot : (way + 1) * shot]]
        c = spec.class_ids[way]
        masks = [np.where(label == 255, 255, label == c).astype(np.uint8) for _, label in pairs]
        images = [task.transform.image(image).transpose(2, 0, 1) for image, _ in pairs]
        return np.stack(images), np.stack([task.transform.label(mask) for mask in masks])

    query = torch.from_numpy(task.transform.image(image).transpose(2, 0, 1).copy())[None]
    ways = [[torch.from_numpy(part)[None] for part in supports_of(way)] for way in range(len(spec.class_ids))]
    if task.way_rule == "joint":
        images, masks = (torch.stack(parts, 1) for parts in zip(*ways))
        return [
            np.array([0, *spec.class_ids])[
                model(as_float(Episode(query, images, masks), torch.float64)).logits[0].argmax(0)
            ]
        ]
    best = np.full((SIZE, SIZE), 0.5 if task.base is None else task.protocol.novel_threshold)
    novel = np.zeros((SIZE, SIZE), int)
    for c, (images, masks) in zip(spec.class_ids, ways):
        episode = as_float(Episode(query, images, masks), torch.float64)
        probability = model(episode).logits[0].softmax(0)[1].numpy()
        novel, best = np.where(probability > best, c, novel), np.maximum(probability, best)
    if task.base is None:
        return [novel]
    of_base = model.segment_base(model.encode_query(episode.query_image), (SIZE, SIZE))[0].argmax(0).numpy()
    base = np.array([0, *task.base])[of_base]
    return [np.where(novel > 0, novel, base), np.where(base > 0, base, novel)]


@pytest.mark.parametrize(
    ("name", "rule", "threshold"),
    [("panet", "joint", None), ("ssp", "joint", None), ("baseline", "argmax", None), ("bam", "argmax", 0.5001),
     pytest.param("panet", "argmax", 0.9, marks=pytest.mark.long),
     pytest.param("hsnet", "argmax", None, marks=pytest.mark.long)],
)  # fmt: skip
def test_counts_equal_a_plain_loop_over_whole_images(toy_root, tmp_path, name, rule, threshold):
    """To the pixel; a metric method's ways are joined above 0.5, whatever the threshold of a base learner's protocol."""
    task, whole = whole_task(toy_root, name, rule, novel_threshold=threshold)
    slow = name == "hsnet"
    lists = lists_of(whole, (1, 2) if name in ("panet", "bam") else (1,), 1 if slow else 2, 1 if slow else 4)
    evaluated, said = evaluate_lists(task, engine_of(tmp_path), lists), set()
    for shot, runs in lists.items():
        for table, run in zip(evaluated[shot], runs, strict=True):
            assert table.classes == tuple(task.split.index.class_name(c) for c in task.classes)
            for n, spec in enumerate(run.specs):
                image, label = task.split.pair(spec.query)
                truth = task.transform.label(label)
                labels = label_of_image(task, spec, image)
                for counts, found in zip((table.counts, *table.further.values()), labels, strict=True):
                    for column, c in enumerate(task.classes):
                        hit, true = (found == c) & (truth != 255), truth == c
                        assert counts[n, 2 + column].tolist() == [(hit & true).sum(), (hit | true).sum()]
                    known = truth != 255
                    assert counts[n, 1, 1] == (((found > 0) | (truth > 0)) & known).sum()
                    assert counts[n, 0, 0] == ((found == 0) & (truth == 0)).sum()
                said |= set(labels[0].flat)
    assert list(evaluated[1][0].further) == (["base first"] if name == "bam" else [])
    fold = Fold(toy_options(toy_root), task.split.index.class_names, 0)
    assert said & set(fold.novel)
    assert said & set(fold.base)
    assert 0 in said or name == "bam"  # of random weights the base learner leaves no pixel


def test_batches_spilling_and_finished_work_change_nothing(toy_root, tmp_path):
    task, whole = whole_task(toy_root, "baseline", "argmax")
    lists = lists_of(whole, queries=3)
    expected = evaluate_lists(task, engine_of(tmp_path), lists)
    for folder, changes in (("one", {"batch_size": 1}), ("disk", {"cache_gb": 0.0, "batch_size": 7})):
        (tmp_path / folder).mkdir()
        found = evaluate_lists(task, engine_of(tmp_path / folder, **changes), lists, tmp_path / folder)
        assert_same(found, expected)
    path = tmp_path / "one" / "finished-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))  # killed in the middle
    assert_same(evaluate_lists(task, engine_of(tmp_path), lists, tmp_path / "one"), expected)
    # Other supports of the same queries are another evaluation.
    with pytest.raises(DataError, match=r"finished-0\.jsonl: holds episodes of another evaluation"):
        evaluate_lists(task, engine_of(tmp_path), lists_of(whole, shots=(1,), queries=3), tmp_path / "one")


def assert_same(found, expected):
    for shot, tables in expected.items():
        for a, b in zip(found[shot], tables, strict=True):
            assert np.array_equal(a.counts, b.counts)


def test_few_predictions_are_held_at_a_time(toy_root, tmp_path, monkeypatch):
    """Of 20 ways of 2 supports in two runs, batch_size predictions are made together, and their supports compared."""
    task, whole = whole_task(toy_root, "baseline", "argmax")
    segmented, compared, of_model, of_pairs = [], [], task.model.segment, task.model.compare

    def segment(query, support, size):
        segmented.append(len(next(iter(query.values()))))
        return of_model(query, support, size)

    def compare(query, support):
        compared.append(next(iter(support.values())).shape[1])
        return of_pairs(query, support)

    monkeypatch.setattr(task.model, "segment", segment)
    monkeypatch.setattr(task.model, "compare", compare)
    lists = lists_of(whole, shots=(2,), queries=1)
    queries = {spec.query for run in lists[2] for spec in run.specs}
    evaluate_lists(task, engine_of(tmp_path), lists)
    assert sum(segmented) == 2 * 20
    assert max(segmented) == engine_of(tmp_path).batch_size
    assert sum(compared) == 2 * 20 * 2
    assert len(queries) in (1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The verb, its tables and the Python API


CONTROL = ("backbone=tiny", "backbone.width=8", "workers=0", "protocol=gfss", "protocol.size=65")


def percent(value):
    return f"{100 * value:.2f}"


def test_evaluate_and_report(fss, toy_root, tmp_path):
    toy = (*TOY, f"dataset.root={toy_root}")
    more = ("shot=[1,2]", "protocol.runs=2", "pictures=2", "protocol.seed=7")
    status, out, err = fss("evaluate", "method=panet", *toy, *CONTROL, *more, f"hydra.run.dir={tmp_path}/outputs/panet")
    assert status == 0, err
    split = Toy(toy_options(toy_root)).split("val")
    whole = WholeList(split.index, Fold(toy_options(toy_root), split.index.class_names, 0), True)
    for shot in (1, 2):
        folder = tmp_path / "outputs" / "panet" / f"{shot}shot"
        result = json.loads((folder / "result.json").read_text())
        runs = [whole.episodes(shot, seed) for seed in (7, 8)]
        assert (result["way"], result["seeds"], result["num_episodes"]) == (20, [7, 8], sum(map(len, runs)))
        assert result["data"]["supports_of"] == "base and novel classes"
        assert list(result["per_class"]) == [split.index.class_name(c) for c in (*whole.base, *whole.ways[-5:])]
        # The numbers once more, of the rows of the tables.
        pixels = {seed: {name: np.zeros(2, int) for name in result["per_class"]} for seed in (7, 8)}
        rows = list(csv.DictReader((folder / "episodes.csv").open()))
        for row in rows:
            parts_of_row = (row[key].split(";") for key in ("class", "intersection", "union"))
            for name, both, either in zip(*parts_of_row, strict=True):
                pixels[int(row["seed"])][name] += int(both), int(either)
        assert [row["query"] for row in rows] == [str(split.index.names[s.query]) for run in runs for s in run.specs]
        supports = list(csv.DictReader((folder / "supports.csv").open()))
        for run in runs:
            assert [row["support"] for row in supports if row["seed"] == str(run.seed)] == [
                str(split.index.names[image]) for image in run.specs[0].supports
            ]
        means = []
        for of in pixels.values():
            ious = [both / either if either else np.nan for both, either in of.values()]
            base, novel = np.nanmean(ious[:15]), np.nanmean(ious[15:])
            means.append((base, novel, (base + novel) / 2, 2 * base * novel / (base + novel)))
        keys = ("base_miou", "novel_miou", "miou", "harmonic_mean")
        for key, value in zip(keys, np.mean(means, axis=0)):
            assert result[key] == pytest.approx(value, abs=1e-12)
            low, high = result["interval"][key]
            assert low <= high
            assert 0 <= low <= 1
        assert [run["base_miou"] for run in result["runs"]] == pytest.approx([of[0] for of in means])
        table = [line for line in out.splitlines() if line.startswith("| panet")]
        for key, row in zip(("miou", "base_miou", "novel_miou", "harmonic_mean"), table, strict=True):
            assert percent(result[key]) in row
    assert "2 x 120 listed images without the supports at 65 px, seeds 7 to 8, 20 classes at once" in out
    for name in ("episodes.png", "best.png", "worst.png"):
        assert (tmp_path / "outputs" / "panet" / "1shot" / name).exists()
    status, out, err = fss("report", "runs=outputs", "formats=[md,tex,csv,html]", "out=report")
    assert status == 0, err
    for path, text in (("report.md", "| panet (novel classes) "), ("report.tex", "panet (harmonic mean)")):
        assert text in next(tmp_path.rglob(path)).read_text()
    status, _, err = fss("compare", "a=outputs/panet/1shot", "b=outputs/panet/1shot")
    assert status == 1
    assert "outputs/panet/1shot/result.json: of base and novel classes at once (protocol=gfss)" in err


def test_bam_has_both_fusions(fss, toy_root, bam_run, tmp_path):
    few = ("workers=0", "protocol=gfss", "protocol.size=65", "protocol.runs=1", "pictures=0")
    status, out, err = fss("evaluate", f"checkpoint={bam_run}", *few, f"hydra.run.dir={tmp_path}/out")
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["data"]["supports_of"] == "novel classes"
    assert len(list(csv.DictReader((tmp_path / "out" / "supports.csv").open()))) == 5
    numbers = {"miou", "fb_iou", "base_miou", "novel_miou", "harmonic_mean"}
    assert set(result["also"]) == {"base first"}
    assert set(result["also"]["base first"]) == numbers
    for row in ("| bam, way_rule=argmax ", "| bam (base first), ", "| bam, base first (novel classes), "):
        assert row in out
    status, _, err = fss("evaluate", f"checkpoint={bam_run}", "fold=1", *few)
    assert status == 1
    assert "fold=1: checkpoint=" in err
    # Its base classes are other ones with another partition of the classes.
    status, _, err = fss("evaluate", f"checkpoint={bam_run}", *few, *TOY, f"dataset.root={toy_root}", "fold=0",
                         "dataset.class_partition=interleaved", "protocol.seen_classes=count")  # fmt: skip
    assert status == 1


def test_refusals(fss, toy_root):
    toy = (*TOY, f"dataset.root={toy_root}")
    panet = ("evaluate", "method=panet", *toy, *CONTROL)
    for arguments, message in (
        ((*panet, "way=3"), "way: expected null, as protocol=gfss segments all classes at once, got 3"),
        ((*panet, "protocol.episodes=20"), "protocol.episodes: expected null, as queries=every"),
        ((*panet, "protocol.queries=random"), "protocol.classes: expected novel, as queries=random, got 'all'"),
        ((*panet, "protocol.supports=with_replacement"), "protocol.supports: expected distinct, as queries=every"),
        ((*panet, "protocol.shots=vote"), "shots: expected train_k or mean, as classes=all"),
        (("evaluate", "method=panet", *toy, "protocol.queries=every"), "protocol.classes: expected all, as queries=every"),
        (("evaluate", "method=panet", *toy, "protocol.episodes=null"), "protocol.episodes: expected a whole number >= 1"),
        ((*panet, "dataset.min_area=9000"), "no image can be a support of"),
        ((*panet, "episodes.save=e.csv"), "a file holds episodes of one class, not of all classes"),
        (("train", "recipe=toy", "backbone=tiny", "method=panet", "tuning=full", *toy, "protocol=gfss"),
         "protocol: expected a protocol of episodes of novel classes; evaluate takes this one, got 'gfss'"),
    ):  # fmt: skip
        status, _, err = fss(*arguments)
        assert status == 1, arguments
        assert message in err.splitlines()[-1]
        assert "Traceback" not in err


def test_python_api(toy_root):
    fold = fss_svf.load_dataset("toy", root=toy_root, **SMALL_TOY).fold(0)
    gfss = fss_svf.Protocol.load("gfss", runs=2)
    episodes = fss_svf.episodes(fold, gfss, size=65)
    lengths = [len(run) for run in episodes.plan.episodes[1]]
    assert len(episodes) == sum(lengths)
    last, first_of_second = episodes[len(episodes) - 1], episodes[lengths[0]]
    assert last.support_images.shape == (1, 20, 1, 3, 65, 65)
    assert first_of_second.number.item() == 0
    assert set(last.support_masks.unique().tolist()) <= {0, 1, 255}
    panet = test_methods.model("panet")
    with pytest.raises(ConfigError, match="way: expected null, as protocol=gfss"):
        fss_svf.evaluate(panet, fold, "gfss", size=65, way=2)
    with pytest.raises(ConfigError, match="way=2: protocol=gfss has classes=all; leave way out"):
        fss_svf.episodes(fold, "gfss", way=2)
    with pytest.raises(ConfigError, match="does not say which base classes it knows"):
        fss_svf.evaluate(test_methods.model("bam"), fold, "gfss", size=65)


@pytest.mark.long
def test_a_model_of_ones_own(toy_root):
    """It gets whole episodes of 20 ways, and its numbers are those of the method behind the seam."""
    fold = fss_svf.load_dataset("toy", root=toy_root, **SMALL_TOY).fold(0)
    panet = test_methods.model("panet").eval().double()

    whole, one_run = OwnModel(panet), fss_svf.Protocol.load("gfss", runs=1)
    by_seam, by_call = (fss_svf.evaluate(model, fold, one_run, size=65, workers=0) for model in (panet, whole))
    assert whole.ways == {20}
    assert by_seam["per_class_counts"] == by_call["per_class_counts"]
    assert 0 < by_seam["base_miou"] < 1
