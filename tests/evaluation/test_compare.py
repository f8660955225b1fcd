"""fss-svf compare: the difference of two results of the same episodes; others are refused by what differs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fss_svf.config import CompareConfig
from fss_svf.errors import ConfigError
from fss_svf.evaluation.compare import compare
from fss_svf.evaluation.episode_table import EpisodeNames, save_episode_table, total_counts
from fss_svf.evaluation.intervals import interval, resampled
from tests.conftest import TOY
from tests.made_up import CLASSES, made_up_table
from tests.one_line import data_error

PROTOCOL = {"name": "svf", "episodes": 200, "runs": 2, "never_drawn": "error"}


def tables_of(better=0.0, episodes=200):
    """Two seeds; every episode's intersection raised by the fraction `better`, of either sign from episode to episode."""
    random = np.random.default_rng(1)
    tables = [made_up_table(random, episodes, seed=seed) for seed in (5, 6)]
    shaking = random.normal(better, 0.1 * bool(better), size=episodes)[:, None]
    for t in tables:
        counted, classes = t.counted, t.counts[:, 2:]
        classes[..., 0] = np.clip(classes[..., 0] * (1 + shaking), 0, classes[..., 1])
        t.counts[:, 1, 0] = classes[..., 0].sum(axis=1)
        t.counts[:, 0, 1] = counted - t.counts[:, 1, 0]
    return tables


def write(folder, tables, **changes):
    result = {
        "miou": 0.1, "fb_iou": 0.5, "fold": 0, "way": 1, "shot": 1, "method": "baseline", "tuning": "svf",
        "backbone": "tiny", "dataset": "toy", "protocol": PROTOCOL, "protocol_hash": "aaaa", "size": 65,
        "seeds": [t.seed for t in tables], "num_episodes": sum(map(len, tables)), "backbone_weights": "random",
        "trainable_backbone_values": 0, "checkpoint": None, "data": {"index": "1234"},
        "per_class_counts": total_counts(tables),
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({**result, **changes}))
    save_episode_table(folder / "episodes.csv", tables)
    return folder


def compared(tmp_path, a, b, classes=None):
    (tmp_path / "out").mkdir(exist_ok=True)
    return compare(CompareConfig("compare", a, b, classes), tmp_path / "out")


def test_difference_of_what_is_better(tmp_path, capsys):
    a, b = tables_of(), tables_of(0.05)
    found = compared(tmp_path, write(tmp_path / "a", a), write(tmp_path / "b", b) / "result.json")
    miou = found["miou"]
    assert miou["difference"] == miou["b"] - miou["a"] > 0
    assert miou["interval"] == interval(resampled(b, False).miou - resampled(a, False).miou)
    assert miou["interval"][0] > 0
    assert miou["b_better"] == 1.0
    assert list(found["per_class"]) == list(CLASSES)
    assert sum(c["episodes"] for c in found["per_class"].values()) == 400
    assert found["verdict"].startswith(f"b is better by {100 * miou['difference']:.2f} mIoU (95% interval +")
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "compare.md").read_text() == printed
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "out" / "provenance.json").exists()
    (row,) = (line.split("|") for line in printed.splitlines() if line.startswith("| mIoU"))
    assert [cell.strip() for cell in row[2:6]] == [
        "400", f"{100 * miou['a']:.2f}", f"{100 * miou['b']:.2f}", f"{100 * miou['difference']:+.2f}"
    ]  # fmt: skip
    # The other way round, the same with the other sign.
    back = compared(tmp_path, tmp_path / "b", tmp_path / "a")
    assert back["miou"]["difference"] == -miou["difference"]
    assert back["miou"]["interval"] == pytest.approx([-end for end in miou["interval"][::-1]])
    assert back["miou"]["b_better"] == 0.0
    assert "b is worse by" in back["verdict"]


def test_a_small_difference_is_not_told_apart(tmp_path):
    found = compared(tmp_path, write(tmp_path / "a", tables_of()), write(tmp_path / "b", tables_of(0.0001)))
    low, high = found["miou"]["interval"]
    assert low < 0 < high
    assert "is not significant at 95%" in found["verdict"]
    assert "few" not in found["verdict"]


def test_equal_results_differ_by_exactly_0(tmp_path):
    found = compared(tmp_path, write(tmp_path / "a", tables_of()), write(tmp_path / "b", tables_of()))
    for part in (found["miou"], found["fb_iou"], *found["per_class"].values()):
        assert part["difference"] == 0
        assert part["interval"] == (0, 0)
        assert part["b_better"] == 0
    assert found["verdict"] == "No difference: the counts of every episode are equal."


def test_few_episodes_are_said_to_be_few(tmp_path):
    a, b = tables_of(episodes=9), tables_of(0.05, episodes=9)
    found = compared(tmp_path, write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert found["verdict"].endswith("9 episodes a seed are few: the interval is too narrow.")


def test_a_class_that_is_not_measured_is_a_dash(tmp_path, capsys):
    a, b = ([made_up_table(np.random.default_rng(0), 60, drawn=[n % 4 for n in range(60)])] for _ in range(2))
    found = compared(tmp_path, write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert found["per_class"]["horse"] == {
        "episodes": 0, "a": None, "b": None, "difference": None, "interval": None, "b_better": None,
        "trainings": [], "trainings_interval": None,
    }  # fmt: skip
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| horse"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["0", *"-----"]
    # Where the protocol counts it as 0, it is in both means.
    zero = {"protocol": {**PROTOCOL, "never_drawn": "zero"}}
    lower = compared(tmp_path, write(tmp_path / "a0", a, **zero), write(tmp_path / "b0", b, **zero))
    assert lower["miou"]["a"] == pytest.approx(0.8 * found["miou"]["a"])
    assert lower["per_class"]["horse"]["a"] == 0


OTHERS = [
    ({"dataset": "pascal"}, "dataset is toy in a and pascal in b"),
    ({"fold": 1}, "fold is 0 in a and 1 in b"),
    ({"way": 2}, "way is 1 in a and 2 in b"),
    ({"shot": 5}, "shot is 1 in a and 5 in b"),
    ({"protocol_hash": "bbbb"}, "protocol_hash is aaaa in a and bbbb in b"),
    ({"protocol_hash": "bbbb", "size": 73}, "size is 65 in a and 73 in b"),
    ({"protocol_hash": "bbbb", "protocol": {**PROTOCOL, "queries": "random"}}, "protocol.queries is None in a and random"),
    ({"protocol_hash": "bbbb", "data": {"index": "5678"}}, "data.index is 1234 in a and 5678 in b"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), OTHERS, ids=[message for _, message in OTHERS])
def test_another_measurement_is_refused(changes, message, tmp_path):
    a, b = write(tmp_path / "a", tables_of()), write(tmp_path / "b", tables_of(), **changes)
    with data_error(f"a={a / 'result.json'}, b={b / 'result.json'}: not the same episodes, {message}"):
        compared(tmp_path, a, b)


def test_other_seeds_classes_and_episodes_are_refused(tmp_path):
    a = write(tmp_path / "a", tables_of())

    def refused(name, tables, message):
        with data_error("not the same episodes", message):
            compared(tmp_path, a, write(tmp_path / name, tables))

    refused("seeds", [replace(t, seed=t.seed + 1) for t in tables_of()], "seeds is [5, 6] in a and [6, 7] in b")
    refused("classes", [replace(t, classes=(*CLASSES[:4], "x")) for t in unshown()], "'horse'] in a and")
    first, second = tables_of()
    own = second.names[17]
    names = list(second.names)
    for place, changed, message in (
        (17, EpisodeNames(own.classes, "other", own.supports), "query is q17 in a and other in b"),
        (17, EpisodeNames(own.classes, own.query, ("s", "t")), "supports is ('s17',) in a and ('s', 't') in b"),
    ):
        names[place] = changed
        tables = [first, replace(second, names=tuple(names))]
        refused(message[:8], tables, f"episode 17 of seed 6, the first that differs: {message}")
    second.counts[3, 0] += 1
    refused("pixels", [first, second], "episode 3 of seed 6, the first that differs: number of counted pixels is")


def unshown():
    """Without an episode of the last class."""
    drawn = np.arange(200) % 4
    return [made_up_table(np.random.default_rng(seed), 200, seed=seed, drawn=drawn) for seed in (5, 6)]


def test_damaged_results_are_refused(tmp_path):
    a = write(tmp_path / "a", tables_of())

    def refused(*words, error=data_error):
        with error(*words):
            compared(tmp_path, a, b)

    b = write(tmp_path / "old", tables_of())
    content = json.loads((b / "result.json").read_text())
    del content["per_class_counts"]
    (b / "result.json").write_text(json.dumps(content))
    refused("old/result.json: has no per_class_counts", "evaluate again")
    b = write(tmp_path / "cut_json", tables_of())
    (b / "result.json").write_text((b / "result.json").read_text()[:200])
    refused("cut_json/result.json: not a readable result", "evaluate again")
    b = write(tmp_path / "missing", tables_of())
    (b / "episodes.csv").unlink()
    refused("missing/episodes.csv: no such file; evaluate again")
    b = write(tmp_path / "cut", tables_of())
    lines = (b / "episodes.csv").read_text().splitlines(keepends=True)
    (b / "episodes.csv").write_text("".join(lines[:-3]))
    refused("cut/episodes.csv: holds 200 episodes of seed 5, 197 episodes of seed 6, its result.json is of 200")
    b = write(tmp_path / "of_another", tables_of())
    save_episode_table(b / "episodes.csv", tables_of(0.05))
    refused("of_another/episodes.csv: its counts are not those of the result.json beside it")


def test_what_is_given_is_one_result(tmp_path):
    a = write(tmp_path / "several" / "1shot", tables_of())
    for b, message in (
        (None, "b: nothing given; say compare a=RESULT b=RESULT"),
        (tmp_path / "nowhere", "there is no such folder or file"),
        (tmp_path / "empty", "there is no result.json under it"),
        (tmp_path / "several", r"holds 2 results \(1shot, 5shot\); give the folder of one"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        if b == tmp_path / "several":
            shutil.copytree(a, b / "5shot")
        with pytest.raises(ConfigError, match=message):
            compared(tmp_path, a, b)


def trainings(tmp_path, name, gains, **changes):
    """A result a training seed, written in the order of `gains`: how much better each is than tables_of()."""
    told = {"path": name, "step": 9, "options": {"recipe.batch_size": 4}}
    return tuple(
        write(tmp_path / f"{name}{seed}", tables_of(gain), checkpoint={**told, "seed": seed, **changes})
        for seed, gain in gains.items()
    )


def test_trainings_of_one_seed_are_a_pair(tmp_path, capsys):
    a = trainings(tmp_path, "a", {3: 0.0, 1: 0.02, 2: 0.0001})
    b = trainings(tmp_path, "b", {1: 0.03, 2: 0.02, 3: 0.05})
    found = compared(tmp_path, a, b, ("dog", "cow"))
    pairs = [compared(tmp_path, tmp_path / f"a{seed}", tmp_path / f"b{seed}", ("dog", "cow")) for seed in (1, 2, 3)]
    for of in (
        lambda c: c["miou"], lambda c: c["fb_iou"], lambda c: c["per_class"]["cat"], lambda c: c["miou_of_classes"]
    ):  # fmt: skip
        apart = [of(pair)["difference"] for pair in pairs]
        assert of(found)["trainings"] == pytest.approx(apart)
        assert of(found)["difference"] == pytest.approx(np.mean(apart))
        half = 4.302653 * np.std(apart, ddof=1) / 3**0.5
        assert of(found)["trainings_interval"] == pytest.approx((np.mean(apart) - half, np.mean(apart) + half))
        # The episodes are those of each pair: the mean of intervals is near, and the ends of one of them are not exceeded.
        lows, highs = zip(*(of(pair)["interval"] for pair in pairs))
        assert min(lows) < of(found)["interval"][0] < of(found)["interval"][1] < max(highs)
    two = found["miou_of_classes"]
    assert two["classes"] == ["dog", "cow"]
    for side in "ab":
        assert two[side] == pytest.approx(np.mean([found["per_class"][c][side] for c in ("dog", "cow")]))
    assert two["episodes"] == sum(found["per_class"][c]["episodes"] for c in ("dog", "cow"))
    # Better in the episodes beyond doubt, but three trainings do not say so.
    assert found["miou"]["interval"][0] > 0 > found["miou"]["trainings_interval"][0]
    assert "is not significant at 95% (95% intervals +" in found["verdict"]
    assert found["verdict"].endswith("over 3 trainings).")
    printed = capsys.readouterr().out
    assert "| mIoU of dog, cow " in printed
    assert f"  - seed 2: {tmp_path / 'a2' / 'result.json'}" in printed


def test_a_result_without_a_training_is_a_pair_with_each(tmp_path, capsys):
    a, b = write(tmp_path / "untrained", tables_of()), trainings(tmp_path, "b", {1: 0.03, 2: 0.02, 3: 0.05})
    found, back = compared(tmp_path, a, b), compared(tmp_path, b, a)
    apart = [compared(tmp_path, a, one)["miou"]["difference"] for one in b]
    assert found["miou"]["trainings"] == pytest.approx(apart)
    assert back["miou"]["trainings"] == pytest.approx([-x for x in apart])
    assert found["miou"]["trainings_interval"] == pytest.approx([-x for x in back["miou"]["trainings_interval"]][::-1])
    assert (len(found["a"]), len(found["b"])) == (1, 3)
    assert "| of 3 trainings " in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ConfigError, match="seeds none in a and 1, 1 in b"):
        compared(tmp_path, a, (b[0], b[0]))


def test_lists_that_make_no_pairs_are_refused(tmp_path):
    a = trainings(tmp_path, "a", {1: 0.0, 2: 0.0})
    b = trainings(tmp_path, "b", {1: 0.02, 2: 0.03, 4: 0.0})
    other = trainings(tmp_path, "longer", {2: 0.02}, step=10)
    option = trainings(tmp_path, "batch", {2: 0.02}, options={"recipe.batch_size": 8})
    untrained = write(tmp_path / "untrained", tables_of())
    for x, y, message in (
        (a, b, "seeds 1, 2 in a and 1, 2, 4 in b"),
        (a, b[0], "seeds 1, 2 in a and 1 in b"),
        (a, (b[1], b[2]), "seeds 1, 2 in a and 2, 4 in b"),
        (a, (b[0], b[0]), "seeds 1, 2 in a and 1, 1 in b"),
        (a, (b[0], *other), r"b\[0\]=.*b1/.*b\[1\]=.*longer2/.*not trainings of one thing, step is 9 in one and 10 in"),
        ((a[0], *option), b[:2], "recipe.batch_size is 4 in one and 8 in the other"),
        (a, (b[0], untrained), r"b\[1\]=.*: was not trained.*; give it alone"),
        (a, (), "b: nothing given"),
    ):
        with pytest.raises(ConfigError, match=message):
            compared(tmp_path, x, y)
    few = write(
        tmp_path / "few",
        tables_of(episodes=100),
        checkpoint=json.loads((a[1] / "result.json").read_text())["checkpoint"],
    )
    with data_error("not the same episodes, ", " in a[0] and ", "few"):
        compared(tmp_path, (a[0], few), b[:2])


def test_trainings_from_other_weights_of_one_name_are_no_seeds_of_one_thing(tmp_path):
    a = trainings(tmp_path, "a", {1: 0.0, 2: 0.0})
    b = trainings(tmp_path, "b", {1: 0.02, 2: 0.03})
    for folder, digest in zip(b, ("3c28cd4100000000", "50e35a6e00000000")):
        path = folder / "result.json"
        named = {"backbone_weights": "resnet50.pth", "backbone_weights_hash": digest}
        path.write_text(json.dumps({**json.loads(path.read_text()), **named}))
    with pytest.raises(
        ConfigError, match="not trainings of one thing, backbone_weights_hash is 3c28cd4100000000 in one"
    ):
        compared(tmp_path, a, b)
    compared(tmp_path, b[0], a[0])
    assert "(resnet50.pth 3c28cd41)" in (tmp_path / "out" / "compare.md").read_text()
    learner = {"recipe.batch_size": 4, "method.base_learner.hash": "aa"}
    with pytest.raises(ConfigError, match=r"method\.base_learner\.hash is None in one and aa in the other"):
        compared(tmp_path, a, (a[0], *trainings(tmp_path, "c", {2: 0.0}, options=learner)))


def test_classes_that_are_not_measured_are_refused(tmp_path):
    a, b = write(tmp_path / "a", tables_of()), write(tmp_path / "b", tables_of())
    with pytest.raises(ConfigError, match=r"classes: 'hors' is not measured here, but cat, .*did you mean 'horse'"):
        compared(tmp_path, a, b, ("cat", "hors"))
    with pytest.raises(ConfigError, match="classes: cat, cat has a class twice"):
        compared(tmp_path, a, b, ("cat", "cat"))
    with pytest.raises(ConfigError, match="classes: expected a list of classes, or null"):
        compared(tmp_path, a, b, ())


def test_compare_as_a_verb(fss, toy_root, tmp_path):
    """On evaluations that were run."""
    control = ("backbone=tiny", *TOY, f"dataset.root={toy_root}", "size=65", "protocol.episodes=20", "workers=0")
    for method in ("background", "prototype"):
        assert fss("evaluate", *control, f"method={method}", "shot=[1,2]", f"name={method}")[0] == 0
    a, b = (next(tmp_path.glob(f"outputs/evaluate/{m}/*")) for m in ("background", "prototype"))
    status, out, err = fss("compare", f"a={a}/2shot", f"b={b}/2shot/result.json")
    assert status == 0, err
    found = json.loads(next(tmp_path.glob("outputs/compare/*/*/compare.json")).read_text())
    for side, path in (("a", a), ("b", b)):
        result = json.loads((path / "2shot" / "result.json").read_text())
        for key in ("miou", "fb_iou"):
            assert found[key][side] == pytest.approx(result[key], abs=1e-12)
            assert found[side][0][key] == result[key]
        assert {name: of[side] for name, of in found["per_class"].items()} == pytest.approx(result["per_class"])
    assert found["verdict"] in out
    status, out, err = fss("compare", f"a={a}/2shot", f"b={b}/1shot")
    assert (status, out) == (1, "")
    assert err.strip().startswith("fss-svf compare: a=")
    assert "shot is 2 in a and 1 in b" in err
