"""Support reliance: which wrong supports are drawn, what is counted with them, and what becomes of the counts."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import fss_svf
from fss_svf.data.fold import Fold
from fss_svf.data.loading import Episodes
from fss_svf.data.manifest import EpisodeList
from fss_svf.data.toy import Toy
from fss_svf.errors import ConfigError
from fss_svf.evaluation.episode_table import EpisodeNames, EpisodeTable
from fss_svf.evaluation.pictures import pick_exchanged, pictures_of
from fss_svf.evaluation.plan import make_plan
from fss_svf.evaluation.reliance import COLUMNS, KINDS, measure_reliance, wrong_lists
from fss_svf.evaluation.runs import evaluate_lists
from fss_svf.reporting.pictures import draw_exchanged
from tests.conftest import SMALL_TOY, TOY, toy_options
from tests.evaluation.test_engine import engine_of, task_of
from tests.evaluation.test_plan import NONE, protocol
from tests.plain_evaluation import EvalEpisodes, as_float, mask_at_label, plain_count
from tests.reporting.test_results import table_under


@pytest.fixture(scope="module")
def planned(toy_root):
    return plan_of(toy_root)


def plan_of(root, shots=(1, 3), **changes):
    options = toy_options(root)
    index = Toy(options).split("val").index
    fold = Fold(options, index.class_names, 0)
    return make_plan(index, fold, shots, protocol(**{"episodes": 60, **changes}), NONE), fold


def specs_of(lists):
    return [spec for episodes in lists for spec in episodes.specs]


# Which supports are drawn


def test_wrong_supports_show_another_class(planned):
    plan, fold = planned
    lists = wrong_lists(plan, fold)
    index, least = plan.episodes[1][0].index, fold.options.min_area
    assert set(lists) == {(shot, kind) for shot in (1, 3) for kind in KINDS}
    for (shot, kind), runs in lists.items():
        for right, wrong in zip(plan.episodes[shot], runs, strict=True):
            assert (wrong.seed, wrong.shot) == (right.seed, shot)
            for spec in wrong.specs:
                drawn, (shown,) = right[spec.number], spec.shown
                # The same query and the same class to be segmented.
                assert (spec.query, spec.class_ids) == (drawn.query, drawn.class_ids)
                assert shown != spec.class_id
                assert len({spec.query, *spec.supports}) == 1 + shot
                assert (index.areas[list(spec.supports), shown] >= least).all()
                if kind == "in_query":
                    assert index.areas[spec.query, shown] >= least
                else:
                    assert shown in fold.novel
    shown = {spec.shown[0] for spec in specs_of(lists[1, "in_query"])}
    assert shown & set(fold.novel)
    assert shown & set(fold.base)
    assert {spec.shown[0] for spec in specs_of(lists[1, "random"])} == set(fold.novel)


def test_every_episode_that_can_have_wrong_supports_has_them(planned):
    plan, fold = planned
    lists = wrong_lists(plan, fold)
    index = plan.episodes[1][0].index
    large = index.areas >= fold.options.min_area
    for right, in_query, random in zip(plan.episodes[1], lists[1, "in_query"], lists[1, "random"], strict=True):
        assert [spec.number for spec in random.specs] == list(range(len(right)))
        crowded = [spec.number for spec in right.specs if large[spec.query].sum() > large[spec.query, spec.class_id]]
        assert [spec.number for spec in in_query.specs] == crowded
        assert 5 < len(crowded) < len(right)


def test_wrong_supports_depend_on_seed_and_number_alone(toy_root, planned):
    lists = wrong_lists(*planned)
    fewer = wrong_lists(*plan_of(toy_root, (3,), runs=1, seed=6, episodes=40, never_drawn="leave_out"))
    for kind in KINDS:
        second = [spec for spec in lists[3, kind][1].specs if spec.number < 40]  # seeds 5 and 6
        assert list(fewer[3, kind][0].specs) == second
        assert lists[3, kind][0].specs != lists[3, kind][1].specs
        # One shot is the first of three.
        firsts = [replace(spec, supports=spec.supports[:1]) for spec in specs_of(lists[3, kind])]
        assert specs_of(lists[1, kind]) == firsts


def test_without_another_class_the_number_is_null(planned, caplog):
    plan, fold = planned
    alone = fold.novel[0]
    one = {shot: [_of_class(episodes, alone) for episodes in runs] for shot, runs in plan.episodes.items()}
    plan = replace(plan, episodes=one, classes=(alone,))
    lists = wrong_lists(plan, fold)
    assert not specs_of(lists[1, "random"])
    assert "no episode can have supports of a random other class; its number is null" in caplog.text
    none = dict.fromkeys(lists, lists[1, "random"])
    found = measure_reliance(1, [_table((0, 1))] * 2, none, dict.fromkeys(lists, [_table()] * 2), fold.base)["random"]
    assert found == {**dict.fromkeys(("difference", "interval", "right", "wrong")), "episodes": 0, "base_episodes": 0,
                     "classes": 0}  # fmt: skip


def _of_class(episodes, class_id):
    return replace(episodes, specs=tuple(spec for spec in episodes.specs if spec.class_id == class_id))


# What is counted


class WrongEpisodes(EvalEpisodes):
    """Supports and their masks are of the class that is shown, the query's mask is of the episode's class."""

    def supports(self, spec):
        return super().supports(replace(spec, class_ids=spec.shown))


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["panet", "bam"])
def test_counts_equal_the_plain_loop(toy_root, tmp_path, name):
    task, (plan, fold) = task_of(toy_root, name, shot=2), plan_of(toy_root, (2,), episodes=12, runs=1,
                                                                 never_drawn="leave_out")  # fmt: skip
    wrong = wrong_lists(plan, fold)
    usual = evaluate_lists(task, engine_of(tmp_path), plan.episodes)
    tables = evaluate_lists(task, engine_of(tmp_path), {**plan.episodes, **wrong})
    # The numbers by the right supports are what they are without the others.
    assert np.array_equal(tables[2][0].counts, usual[2][0].counts)
    fss_svf.svf.merge(task.model)
    for key, (episodes,) in wrong.items():
        make = WrongEpisodes(task.split, episodes, task.transform)
        assert len(episodes) > 3
        for n, spec in enumerate(episodes.specs):
            one = make(n)
            with torch.inference_mode():
                logits = task.model(as_float(one.episode, torch.float64)).logits
            truth = one.original_mask.numpy()
            expected = plain_count(mask_at_label(logits, one, task.protocol).numpy(), truth, {1: spec.class_id},
                                   task.classes)  # fmt: skip
            assert np.array_equal(tables[key][0].counts[n], expected), (key, n)


def test_a_model_that_ignores_its_supports_has_none(toy_root, tmp_path):
    def bright(episode):
        """Whatever is bright, whatever the supports show."""
        value = episode.query_image.mean(1, keepdim=True)
        return torch.cat([-value, value], 1)

    fold = fss_svf.load_dataset("toy", root=toy_root, **SMALL_TOY).fold(0)
    few = fss_svf.Protocol.load("svf", episodes=40, runs=2, never_drawn="leave_out")
    how = {"protocol": few, "size": 65, "workers": 0}
    result = fss_svf.evaluate(bright, fold, reliance=True, out=tmp_path, **how)
    for kind in KINDS:
        found = result["reliance"][kind]
        assert found["difference"] == 0
        assert found["interval"] == (0, 0)
        assert found["right"] == found["wrong"] > 0.05
    assert result["reliance"]["random"]["right"] == pytest.approx(result["miou"], abs=1e-12)
    assert result["reliance"]["random"]["episodes"] == result["num_episodes"] == 80
    assert result["reliance"]["random"]["base_episodes"] == 0
    assert 0 < result["reliance"]["in_query"]["base_episodes"] < result["reliance"]["in_query"]["episodes"] < 80
    # Nothing else of the result is another.
    usual = fss_svf.evaluate(bright, fold, **how)
    assert {key: value for key, value in result.items() if key != "reliance"} == usual
    with (tmp_path / "reliance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS == tuple(table_under("reliance.csv"))
    assert len(rows) == sum(result["reliance"][kind]["episodes"] for kind in KINDS)
    assert all(row["class"] != row["support_class"] for row in rows)
    # The file gives the number: `wrong` of each seed is the mean over classes of summed counts.
    mious = []
    for seed in result["seeds"]:
        of_seed = [row for row in rows if (row["kind"], row["seed"]) == ("random", str(seed))]
        ious = []
        for name in {row["class"] for row in of_seed}:
            counts = [(int(r["intersection"]), int(r["union"])) for r in of_seed if r["class"] == name]
            ious.append(sum(i for i, _ in counts) / sum(u for _, u in counts))
        mious.append(sum(ious) / len(ious))
    assert sum(mious) / 2 == pytest.approx(result["reliance"]["random"]["wrong"], abs=1e-12)


# What becomes of the counts


def _table(*episodes, seed=0):
    """Two classes; episodes are (class, intersection) or (class, intersection, union), of 10 pixels."""
    table = EpisodeTable(
        seed=seed,
        classes=("a", "b"),
        names=tuple(EpisodeNames(("ab"[c],), "query", ("support",)) for c, *_ in episodes),
        measured=np.array([[c == 0, c == 1] for c, *_ in episodes], bool).reshape(-1, 2),
        counts=np.zeros((len(episodes), 4, 2), np.int64),
    )
    for n, (c, both, *union) in enumerate(episodes):
        table.counts[n, 2 + c] = both, *(union or [10])
    return table


def _lists(planned, numbers):
    """Wrong lists of both kinds with these episode numbers in each run; of classes in turn."""
    plan, fold = planned
    runs = []
    for episodes, of_run in zip(plan.episodes[1], numbers, strict=True):
        specs = (replace(episodes[n], number=n, class_ids=(fold.novel[n % 2],), shown=(fold.base[0],)) for n in of_run)
        runs.append(replace(episodes, specs=tuple(specs)))
    assert isinstance(runs[0], EpisodeList)
    return {(1, kind): runs for kind in KINDS}


def test_both_sides_are_of_the_same_episodes_and_classes(planned):
    right = [_table((0, 8), (1, 6), (0, 10), (1, 2)), _table((0, 5), (1, 5), (0, 5), (1, 5), seed=1)]
    wrong = [_table((0, 4), (1, 1)), _table((0, 1), seed=1)]
    lists = _lists(planned, [(0, 1), (2,)])
    found = measure_reliance(1, right, lists, dict.fromkeys(lists, wrong), planned[1].base)["in_query"]
    # Seed 0: 80% and 60% against 40% and 10%; seed 1, where b has no episode: 50% against 10%.
    assert found["right"] == pytest.approx((0.7 + 0.5) / 2)
    assert found["wrong"] == pytest.approx((0.25 + 0.1) / 2)
    assert found["difference"] == pytest.approx(found["right"] - found["wrong"])
    assert (found["episodes"], found["base_episodes"], found["classes"]) == (3, 3, 2)
    low, high = found["interval"]
    assert low <= found["difference"] <= high


def test_a_seed_without_such_an_episode_is_left_out(planned):
    right, wrong = [_table((0, 8)), _table((0, 5), seed=1)], [_table((0, 2)), _table(seed=1)]
    lists = _lists(planned, [(0,), ()])
    found = measure_reliance(1, right, lists, dict.fromkeys(lists, wrong), ())["in_query"]
    assert found["right"] == pytest.approx(0.8)
    assert found["difference"] == pytest.approx(0.6)
    assert found["interval"] == pytest.approx((0.6, 0.6))


def test_a_class_without_a_union_on_one_side_is_on_neither(planned):
    """Its pixels were lost in resizing, and only the right supports lead to a prediction."""
    right, wrong = [_table((0, 8), (1, 0, 3))], [_table((0, 2), (1, 0, 0))]
    lists = {key: runs[:1] for key, runs in _lists(planned, [(0, 1), ()]).items()}
    found = measure_reliance(1, right, lists, dict.fromkeys(lists, wrong), ())["in_query"]
    assert (found["right"], found["wrong"]) == pytest.approx((0.8, 0.2))


# The command


def evaluated(fss, root, name, *more):
    few = (
        "protocol.episodes=25",
        "protocol.never_drawn=leave_out",
        "workers=0",
        "pictures=0",
        "size=65",
        "reliance=true",
    )
    where = (*TOY, f"dataset.root={root}", "backbone=tiny", f"hydra.run.dir={name}")
    return fss("evaluate", f"method={name}", *where, *few, *more)


def test_command_and_report(fss, toy_root, tmp_path):
    status, out, err = evaluated(fss, toy_root, "background", "shot=[1,2]")
    assert status == 0, err
    assert "1-shot: support reliance with another class in the query 0.0 (95% interval 0.0 to 0.0; mIoU 0.0 by" in err
    assert "1-shot reliance | 1-shot reliance, random class" in out
    for shot in (1, 2):
        found = json.loads((tmp_path / f"background/{shot}shot/result.json").read_text())["reliance"]
        assert [found[kind]["difference"] for kind in KINDS] == [0, 0]
        assert (tmp_path / f"background/{shot}shot/reliance.csv").exists()
    assert evaluated(fss, toy_root, "prototype")[0] == 0
    usual = ("method=prototype", "backbone=tiny", *TOY, f"dataset.root={toy_root}", "size=65", "workers=0")
    few = ("protocol.episodes=25", "protocol.never_drawn=leave_out", "pictures=0", "hydra.run.dir=without")
    assert fss("evaluate", *usual, *few)[0] == 0
    assert not (tmp_path / "without/reliance.csv").exists()
    status, out, _ = fss("report", "runs=[background,prototype]", "out=report")
    assert status == 0
    for name in ("report.md", "report.tex", "report.html"):
        text = (tmp_path / "report" / name).read_text()
        assert "reliance, random class" in text.replace("reliance,\\\\random class", "reliance, random class"), name
    with (tmp_path / "report/report.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["method"] == "background")
    assert (row["reliance.in_query.difference"], row["reliance.in_query.interval.low"]) == ("0.0", "0.0")
    # Results without the number have a dash there, and alone no column.
    status, out, _ = fss("report", "runs=without", "out=alone")
    assert status == 0
    assert "reliance" not in (tmp_path / "alone/report.md").read_text().lower()
    # Another evaluation into the same folder leaves no file of this one.
    assert fss("evaluate", *usual, *few[:-1], "hydra.run.dir=prototype")[0] == 0
    assert not (tmp_path / "prototype/reliance.csv").exists()


def test_pictures_are_of_the_same_query_with_three_supports(toy_root, tmp_path):
    task, (plan, fold) = task_of(toy_root, "prototype"), plan_of(toy_root, (1,), never_drawn="leave_out")
    chosen = pick_exchanged(plan.episodes[1][0], wrong_lists(plan, fold)[1, "in_query"][0], 3)
    drawn = pictures_of(task, engine_of(tmp_path), chosen)
    assert [len(pictures) for pictures in drawn.values()] == [3, 3, 3]
    for n, (right, wrong, none) in enumerate(zip(*drawn.values(), strict=True)):
        assert right.number == wrong.number == none.number
        assert right.classes == wrong.classes
        assert np.array_equal(right.truth, wrong.truth)
        assert np.array_equal(right.truth, none.truth)
        # The second support is a photograph without the class; marked is what the episode says, and then nothing.
        spec, images = chosen["wrong"][n], Episodes(task.split, task.annotation)
        marked = images.support(replace(spec, class_ids=spec.shown), 0)[1]
        assert (marked == 1).any()
        assert np.array_equal(wrong.supports[0][1], marked)
        assert np.array_equal(wrong.supports[0][0], none.supports[0][0])
        assert not np.array_equal(wrong.supports[0][0], right.supports[0][0])
        assert not (none.supports[0][1] == 1).any()
    assert len({spec.query for spec in chosen["right"].specs}) == 3
    assert draw_exchanged(**drawn).shape == (22 + 3 * 88, 7 * 66 + 6, 3)


def test_pictures_reach_the_report(fss, toy_root, tmp_path):
    assert evaluated(fss, toy_root, "background", "pictures=2")[0] == 0
    assert (tmp_path / "background/reliance.png").exists()
    assert fss("report", "runs=background", "out=report")[0] == 0
    text = (tmp_path / "report/report.html").read_text()
    assert text.count('class="sheet"') == 1
    assert "With other supports" in text
    # Without reliance=true none is left of it.
    assert evaluated(fss, toy_root, "background", "reliance=false")[0] == 0
    assert not (tmp_path / "background/reliance.png").exists()


def test_several_ways_are_refused(fss, toy_root):
    status, _, err = evaluated(fss, toy_root, "prototype", "way=2")
    assert status == 1
    assert "reliance=true: is of episodes of one class, got way=2; say way=1, or leave reliance out" in err
    fold = fss_svf.load_dataset("toy", root=toy_root, **SMALL_TOY).fold(0)
    with pytest.raises(ConfigError, match="got way=2"):
        fss_svf.evaluate(lambda episode: None, fold, way=2, size=65, reliance=True)


def test_an_interrupted_evaluation_goes_on_with_its_wrong_supports(toy_root, tmp_path):
    task, (plan, fold) = task_of(toy_root, "panet"), plan_of(toy_root, (1,), episodes=15, never_drawn="leave_out")
    lists = {**plan.episodes, **wrong_lists(plan, fold)}
    whole = evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)
    file = tmp_path / "finished-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2]))
    again = evaluate_lists(task, engine_of(tmp_path), lists, tmp_path)
    for key, tables in whole.items():
        for table, other in zip(tables, again[key], strict=True):
            assert np.array_equal(table.counts, other.counts)
