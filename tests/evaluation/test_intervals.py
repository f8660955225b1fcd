"""Intervals against a loop that draws and counts episode by episode, against the variance of a simple case, and by how
often they hold the truth."""

import statistics

import numpy as np
import pytest

from fss_svf.evaluation import intervals as ours
from fss_svf.evaluation.intervals import (
    deviation,
    interval,
    measured,
    resampled,
    students_interval,
    students_t,
    weights,
)
from tests.made_up import CLASSES, made_up_table, plain_scores


@pytest.mark.parametrize("zero", [False, True])
def test_resamples_equal_a_plain_loop(zero):
    """Two seeds of 12 episodes: classes drop out of resamples, and one is never drawn."""
    random = np.random.default_rng(3)
    tables = [made_up_table(random, 12, drawn=random.integers(4, size=12), seed=s) for s in (7, 8)]
    found = resampled(tables, zero, resamples=40)
    drawn = [np.concatenate(list(weights(12, number, 40))) for number in range(2)]
    dropped = 0
    for r in range(40):
        of_seeds = [plain_scores(t, np.repeat(np.arange(12), w[r]), zero) for t, w in zip(tables, drawn)]
        assert found.miou[r] == pytest.approx(statistics.fmean(miou for miou, *_ in of_seeds), abs=1e-12)
        assert found.fb_iou[r] == pytest.approx(statistics.fmean(fb_iou for _, fb_iou, _ in of_seeds), abs=1e-12)
        for c in range(len(CLASSES)):
            values = [iou[c] for *_, iou in of_seeds if c in iou]
            dropped += not values
            assert found.per_class[r, c] == pytest.approx(statistics.fmean(values) if values else np.nan, nan_ok=True)
    assert (dropped > 0) is not zero


@pytest.mark.parametrize("zero", [False, True])
def test_measured_equals_loops(zero):
    random = np.random.default_rng(4)
    tables = [made_up_table(random, 30, drawn=random.integers(4, size=30)) for _ in range(3)]
    of_seeds, found = [plain_scores(t, zero=zero) for t in tables], measured(tables, zero)
    assert found.miou[0] == pytest.approx(statistics.fmean(miou for miou, *_ in of_seeds), abs=1e-12)
    assert found.fb_iou[0] == pytest.approx(statistics.fmean(fb_iou for _, fb_iou, _ in of_seeds), abs=1e-12)


def test_nothing_counted_is_0():
    table = made_up_table(np.random.default_rng(0), 3)
    table.counts[:] = 0
    found = resampled([table], zero=False, resamples=5)
    assert not found.miou.any()
    assert not found.fb_iou.any()
    assert np.isnan(found.per_class).all()
    assert interval(found.per_class[:, 0]) is None


def test_weights_draw_as_many_episodes_evenly(monkeypatch):
    whole = np.concatenate(list(weights(50, 0, 2000)))
    assert whole.shape == (2000, 50)
    assert (whole.sum(axis=1) == 50).all()
    # Binomial(50, 1/50): mean 1, variance 0.98.
    assert np.abs(whole.mean(axis=0) - 1).max() < 0.1
    assert whole.var() == pytest.approx(0.98, abs=0.03)
    assert not np.array_equal(whole, np.concatenate(list(weights(50, 1, 2000))))
    # In small pieces too.
    monkeypatch.setattr(ours, "_CELLS", 120)
    pieces = list(weights(50, 0, 2000))
    assert len(pieces) == 1000
    assert np.array_equal(np.concatenate(pieces), whole)


def test_spread_is_that_of_a_mean():
    """With one class and equal unions, mIoU is a plain mean: its bootstrap variance is the variance of the values / n."""
    table = made_up_table(np.random.default_rng(5), 400, classes=("cat",))
    table.counts[:, 2, 0] = table.counts[:, 2, 0] * 1000 // table.counts[:, 2, 1]
    table.counts[:, 2, 1] = 1000
    values = table.counts[:, 2, 0] / 1000
    found = resampled([table], zero=False, resamples=4000)
    standard_error = values.std() / 20
    assert found.miou.std() == pytest.approx(standard_error, rel=0.04)
    low, high = interval(found.miou)
    assert (low - values.mean(), high - values.mean()) == pytest.approx(
        (-1.96 * standard_error, 1.96 * standard_error), rel=0.08
    )
    # The mean over 4 seeds of as many episodes shakes half as much.
    four = resampled([table] * 4, zero=False, resamples=4000)
    assert four.miou.std() == pytest.approx(standard_error / 2, rel=0.04)


@pytest.mark.parametrize(
    ("episodes", "covered"),
    [pytest.param(10, 0.87, marks=pytest.mark.long), (50, 0.93), pytest.param(100, 0.94, marks=pytest.mark.long)],
)
def test_interval_holds_the_truth_as_often_as_documented(episodes, covered):
    """The numbers of docs/results.md."""
    random = np.random.default_rng(1)
    truth = measured([made_up_table(random, 200_000)], zero=False).miou[0]
    held = 0
    for _ in range(3000):
        low, high = interval(resampled([made_up_table(random, episodes)], zero=False, resamples=500).miou)
        held += low <= truth <= high
    assert held / 3000 == pytest.approx(covered, abs=0.01)


def test_the_same_counts_give_the_same_interval():
    one, again = ([made_up_table(np.random.default_rng(6), 60) for _ in range(2)] for _ in range(2))
    assert np.array_equal(resampled(one, True).miou, resampled(again, True).miou)
    assert interval(resampled(one, True).fb_iou) == interval(resampled(again, True).fb_iou)


def test_paired_difference_is_narrower_than_its_sides():
    """b finds 5 % more than a in every episode: apart their intervals overlap, paired the difference is plain."""
    a, b = ([made_up_table(np.random.default_rng(7), 300)] for _ in range(2))
    b[0].counts[:, 2:, 0] = b[0].counts[:, 2:, 0] * 1.05 // 1
    sides = [resampled(tables, False) for tables in (a, b)]
    (_, high_a), (low_b, _) = (interval(side.miou) for side in sides)
    assert low_b < high_a
    low, high = interval((sides[1] - sides[0]).miou)
    assert 0 < low < high < 0.05
    same = resampled(a, False) - sides[0]
    assert not same.miou.any()
    assert not same.fb_iou.any()


def test_deviation_is_of_a_sample():
    assert deviation([0.4]) is None
    assert deviation([0.1, 0.2, 0.4]) == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))


def test_students_interval():
    # Two-sided 95 % points of printed tables.
    for freedom, t in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)):
        assert students_t(freedom) == pytest.approx(t, abs=6e-4)
    assert students_t(7, 0.99) == pytest.approx(3.499, abs=6e-4)
    assert students_interval([0.5]) is None
    assert students_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    # It holds the mean of what is drawn as often as it says, however few there are.
    random = np.random.default_rng(0)
    for n in (2, 3, 5):
        drawn = random.normal(1.0, 3.0, size=(2000, n))
        held = [low <= 1.0 <= high for low, high in (students_interval(list(row)) for row in drawn)]
        assert np.mean(held) == pytest.approx(0.95, abs=0.015)
