"""The page's numbers of single episodes: paired differences, intervals by class, sizes; and how rows look."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fss_svf.evaluation.differences import differences
from fss_svf.evaluation.episode_table import load_episode_table, save_episode_table, total_counts
from fss_svf.evaluation.intervals import interval, resampled
from fss_svf.evaluation.metric import iou
from fss_svf.page.content import own_rows
from fss_svf.page.episodes import read_episodes
from fss_svf.page.looks import COLOURS, looks_of
from fss_svf.page.page import page
from fss_svf.page.paired import paired_differences
from fss_svf.page.plots import LINE, SERIES, SOFT, TEXT
from fss_svf.page.sections import classes
from fss_svf.reporting.table import make_tables
from tests.made_up import CLASSES, made_up_table
from tests.reporting.test_report import result


def evaluated(folder, better=0.0, fold=0, seed=1, tuning="svf", sizes=True, episodes=120, **changes):
    """A result with its episodes.csv: those of one fold are the same, their intersections larger by the share `better`."""
    table = made_up_table(np.random.default_rng(fold), episodes, seed=321)
    random = np.random.default_rng([seed, len(tuning)])
    counted, classes = table.counted, table.counts[:, 2:]
    shaking = random.normal(better, 0.05, size=episodes)[:, None]
    classes[..., 0] = np.clip(classes[..., 0] * (1 + shaking), 0, classes[..., 1])
    table.counts[:, 1, 0] = classes[..., 0].sum(axis=1)
    table.counts[:, 0, 1] = counted - table.counts[:, 1, 0]
    if not sizes:
        table = replace(table, true=None)
    folder.mkdir(parents=True)
    save_episode_table(folder / "episodes.csv", [table])
    per_class = iou(table.counts.sum(0)[2:])
    return {
        **result(float(np.mean(per_class)), fold, tuning=tuning, seed=seed),
        "per_class": dict(zip(CLASSES, map(float, per_class))), "per_class_counts": total_counts([table]), "way": 1,
        "num_episodes": episodes, "data": {}, "path": str(folder / "result.json"), **changes,
    }  # fmt: skip


def tables_in(results):
    return [load_episode_table(_csv(r), CLASSES) for r in results]


def _csv(r):
    return Path(r["path"]).with_name("episodes.csv")


def test_paired_differences_are_those_of_compare(tmp_path):
    a = [evaluated(tmp_path / f"a{seed}", seed=seed, tuning="frozen") for seed in (1, 2)]
    b = [evaluated(tmp_path / f"b{seed}", 0.3, seed=seed) for seed in (1, 2)]
    (table,) = make_tables([*a, *b])
    pairs = list(paired_differences(table, read_episodes([*a, *b]), 1))
    # The best row is the first reference.
    assert [(reference.words[1], [p.row.words[1] for p in of]) for reference, of in pairs] == [
        ("svf", ["frozen"]),
        ("frozen", ["svf"]),
    ]
    found = pairs[1][1][0]
    expected = differences([(t, False) for t in tables_in(a)], [(t, False) for t in tables_in(b)], None)["miou"]
    assert found.difference == pytest.approx(expected["difference"])
    assert found.interval == pytest.approx(expected["interval"])
    assert found.trainings == pytest.approx(expected["trainings"])
    assert found.trainings_interval == pytest.approx(expected["trainings_interval"])
    assert found.clear == (found.interval[0] > 0 and found.trainings_interval[0] > 0)
    text = page([table], [*a, *b]).html
    assert f"{100 * found.difference:+.2f}" in text


def test_a_mean_over_folds_is_surer_than_a_fold(tmp_path):
    results = [
        evaluated(tmp_path / f"{tuning}{fold}", better, fold, tuning=tuning)
        for fold in range(4)
        for tuning, better in (("frozen", 0.0), ("svf", 0.1))
    ]
    whole, alone = (
        list(paired_differences(make_tables(some)[0], read_episodes(some), 1))[1][1][0]
        for some in (results, results[:2])
    )
    assert whole.folds == (0, 1, 2, 3)
    of_folds = [r["miou"] for r in results]
    assert whole.difference == pytest.approx(np.mean(of_folds[1::2]) - np.mean(of_folds[::2]))
    assert np.diff(whole.interval) < np.diff(alone.interval)


def test_rows_of_other_episodes_are_not_paired(tmp_path):
    one, other = evaluated(tmp_path / "a"), evaluated(tmp_path / "b", tuning="frozen")
    tables = load_episode_table(tmp_path / "b" / "episodes.csv", CLASSES)
    names = [replace(tables[0].names[0], query="another"), *tables[0].names[1:]]
    save_episode_table(tmp_path / "b" / "episodes.csv", [replace(tables[0], names=tuple(names))])
    (table,) = make_tables([one, other])
    assert list(paired_differences(table, read_episodes([one, other]), 1)) == []
    assert "No two rows of a table have the same episodes" in page([table], [one, other]).html


def test_what_was_not_trained_is_paired_with_every_training(tmp_path):
    control = {**evaluated(tmp_path / "c", tuning="none"), "checkpoint": None}
    trained = [evaluated(tmp_path / f"{seed}", 0.2, seed=seed) for seed in (1, 2, 3)]
    (table,) = make_tables([control, *trained])
    of = {
        reference.words[1]: pairs
        for reference, pairs in paired_differences(table, read_episodes([control, *trained]), 1)
    }
    assert of["none"][0].trainings == pytest.approx([r["miou"] - control["miou"] for r in trained])
    assert of["svf"][0].difference == pytest.approx(-of["none"][0].difference)


def test_the_page_has_every_plot_and_files_of_them(tmp_path):
    results = [
        evaluated(tmp_path / t, tuning=t, trainable_backbone_values=n) for t, n in (("frozen", 0), ("svf", 12_544))
    ]
    made = page(make_tables(results), results)
    kinds = sorted(re.match(r"[a-z]+", name)[0] for name in made.figures)
    assert kinds == ["classes", "differences", "differences", "histogram", "sizes", "trainable"]
    known = {light for light, _ in (*SERIES, TEXT, SOFT, LINE)}
    for name, svg in made.figures.items():
        assert re.fullmatch(r"[A-Za-z0-9-]+", name)
        drawing = svg.split("</style>")[1]
        # Every colour is one that the dark style replaces.
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) <= known
        assert "prefers-color-scheme: dark" in svg
        assert drawing.removesuffix("</svg>") in made.html
        assert len(svg) < 40_000
    ids = re.findall(r' id="([^"]+)"', made.html)
    assert len(ids) == len(set(ids))
    assert page(make_tables(results), results) == made


def test_intervals_of_classes_are_those_of_the_bootstrap(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(classes, "class_plot", lambda *given: drawn.append(given))
    one = evaluated(tmp_path / "a")
    page(make_tables([one]), [one])
    ((_, _, names, ((_, values),)),) = drawn
    assert list(names) == list(CLASSES)
    (tables,) = tables_in([one])
    resamples = resampled(tables, False).per_class
    for c, name in enumerate(CLASSES):
        assert values[name] == (one["per_class"][name], interval(resamples[:, c]))


def test_a_class_without_episodes_has_no_line_in_the_plot(tmp_path):
    one = evaluated(tmp_path / "a")
    first, *others = CLASSES
    one["per_class"] = {**one["per_class"], first: None}
    text = page(make_tables([one]), [one]).html
    assert f"Classes of fold 0, 1-shot; without episodes: {first}<" in text
    drawing = re.search(r'aria-label="Classes of fold.*?</svg>', text, re.DOTALL)[0]
    assert [name for name in re.findall(r">([^<]+)</text>", drawing) if name in CLASSES] == others


def test_sizes_are_shares_of_the_counted_pixels(tmp_path):
    one = evaluated(tmp_path / "a")
    measured = read_episodes([one])[one["path"]]
    (table,) = measured.tables
    assert measured.sizes.tolist() == (table.true.sum(1) / table.counted).tolist()
    assert measured.ious.tolist() == iou(table.counts[:, 1]).tolist()


def test_older_and_damaged_files_leave_plots_out(tmp_path, caplog):
    older = evaluated(tmp_path / "a", sizes=False)
    made = page(make_tables([older]), [older])
    assert [name for name in made.figures if name.startswith(("histogram", "sizes"))] == [
        name for name in made.figures if name.startswith("histogram")
    ]
    damaged = evaluated(tmp_path / "b", tuning="frozen")
    _csv(damaged).write_text("seed\n")
    made = page(make_tables([damaged]), [damaged])
    assert "expected the columns" in caplog.text
    assert "the report has no plots of these episodes" in caplog.text
    caplog.clear()
    read_episodes([damaged] * 5)
    assert [record.getMessage()[:21] for record in caplog.records[3:]] == ["nor of 2 more results"]
    assert [name.split("-")[0] for name in made.figures] == ["classes"]


def test_a_part_has_the_colour_of_its_result():
    """The parts of a mean of base and novel classes, and a further prediction with parts of its own."""
    parts = {"base_miou": 0.2, "novel_miou": 0.1, "harmonic_mean": 0.13}
    results = [
        {**result(0.15), **parts, "method": method, "way_rule": rule, "also": {"base first": {"miou": 0.1, **parts}}}
        for method, rule in (("bam", "argmax"), ("panet", None))
    ]
    (table,) = make_tables(results)
    looks = looks_of([table])
    colours = {row.words[0]: looks[id(row)].colour for row in table.rows}
    assert len(colours) == 2 * 8
    assert {colour for name, colour in colours.items() if name.startswith("bam")} == {0}
    assert {colour for name, colour in colours.items() if name.startswith("panet")} == {1}
    assert [row.words[0] for row in own_rows(table)] == ["bam, way_rule=argmax", "panet"]


def test_a_method_and_tuning_has_one_colour_throughout():
    results = [result(0.1, shot=shot, tuning=t, protocol_hash=h) for shot in (1, 5) for t in "abcdefghij" for h in "xy"]
    results += [result(0.1, tuning="a", protocol_hash="x", **{"tuning.rank": 4})]
    tables = make_tables(results)
    looks, of_tunings = looks_of(tables), {}
    for table in tables:
        for row in table.rows:
            of_tunings.setdefault(row.words[1], set()).add(looks[id(row)].colour)
        # In one table, no two rows look alike.
        assert len({(looks[id(row)].colour, looks[id(row)].style) for row in table.rows}) == len(table.rows)
        assert len({looks[id(row)].name for row in table.rows}) == len(table.rows)
    assert all(len(colours) == 1 for colours in of_tunings.values())
    assert set.union(*of_tunings.values()) == set(range(COLOURS))


def test_what_differs_is_named_with_its_brackets():
    """A list of seeds or of values is one part of a name, though it holds commas."""
    results = [
        result(0.1, seed=seed, **{"tuning.train": train})
        for train, seeds in ((["S"], (1, 5)), (["U", "S"], (1, 7)))
        for seed in seeds
    ]
    (table,) = make_tables(results)
    assert [look.name for look in looks_of([table]).values()] == [
        "baseline, svf, 2 seeds (1, 5), tuning.train=['S']",
        "baseline, svf, 2 seeds (1, 7), tuning.train=['U', 'S']",
    ]
