"""mIoU and FB-IoU against torchmetrics and against plain loops, on random and on adversarial input."""

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from fss_svf.evaluation.counts import Counts, count_episode

pytestmark = pytest.mark.numeric


def plain(episodes, classes):
    """The definitions, pixel by pixel."""
    inter, union = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0)
    pooled = {0: [0, 0], 1: [0, 0]}
    for class_id, said, mask in episodes:
        for p, t in zip(said.flatten().tolist(), mask.flatten().tolist()):
            if t == 255:
                continue
            inter[class_id] += p and t == 1
            union[class_id] += p or t == 1
            for value in (0, 1):
                pooled[value][0] += p == value and t == value
                pooled[value][1] += p == value or t == value
    ious = [inter[c] / union[c] for c in classes if union[c]]
    parts = [i / u for i, u in pooled.values() if u]
    return sum(ious) / len(ious) if ious else 0.0, sum(parts) / len(parts) if parts else 0.0


def counted(episodes, num_classes):
    counts = Counts(num_classes)
    for class_id, said, mask in episodes:
        counts.add(count_episode({1: class_id}, said, mask))
    return counts


def random_episodes(seed, n=12, classes=(1, 3, 4), ignored=0.1):
    g = torch.Generator().manual_seed(seed)
    episodes = []
    for i in range(n):
        h, w = (int(x) for x in torch.randint(3, 17, (2,), generator=g))
        mask = (torch.rand(h, w, generator=g) < 0.3).byte()
        mask[torch.rand(h, w, generator=g) < ignored] = 255
        episodes.append((classes[i % len(classes)], torch.rand(h, w, generator=g) < 0.4, mask))
    return episodes


@pytest.mark.parametrize("seed", range(5))
def test_equals_plain_loops_and_torchmetrics(seed):
    episodes = random_episodes(seed)
    counts = counted(episodes, 5)
    miou, fb_iou = plain(episodes, (1, 3, 4))
    assert counts.miou() == pytest.approx(miou, abs=1e-12)
    assert counts.fb_iou() == pytest.approx(fb_iou, abs=1e-12)

    pooled = JaccardIndex(task="multiclass", num_classes=2, ignore_index=255, average="none")
    for c in (1, 3, 4):
        of_class = JaccardIndex(task="multiclass", num_classes=2, ignore_index=255, average="none")
        for class_id, said, mask in episodes:
            if class_id == c:
                of_class.update(said.long().flatten(), mask.long().flatten())
        assert counts.per_class()[c] == pytest.approx(of_class.compute()[1].item(), abs=1e-6)
    for _, said, mask in episodes:
        pooled.update(said.long().flatten(), mask.long().flatten())
    assert counts.fb_iou() == pytest.approx(pooled.compute().mean().item(), abs=1e-6)


def one(said, mask, class_id=1):
    return (class_id, torch.tensor(said, dtype=torch.bool), torch.tensor(mask, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("episodes", "miou", "fb_iou"),
    [
        ([], 0.0, 0.0),
        ([one([[1, 0]], [[255, 255]])], 0.0, 0.0),  # all ignored: nothing was measured
        ([one([[0, 0]], [[1, 0]])], 0.0, 0.25),  # empty prediction
        ([one([[0, 0]], [[0, 0]])], 0.0, 1.0),  # empty prediction of an empty mask: the class has no union
        ([one([[1, 1]], [[1, 1]])], 1.0, 1.0),  # no background at all
        ([one([[1, 1]], [[0, 0]])], 0.0, 0.0),  # everything wrong
        ([one([[1, 1]], [[1, 255]])], 1.0, 1.0),  # wrong only where ignored
    ],
)
def test_adversarial(episodes, miou, fb_iou):
    counts = counted(episodes, 3)
    assert (counts.miou(), counts.fb_iou()) == (miou, fb_iou)
    assert (counts.miou(), counts.fb_iou()) == plain(episodes, (1, 2, 3))


def test_an_absent_class_is_left_out_not_averaged_as_zero():
    counts = counted([one([[1, 1]], [[1, 0]], class_id=2)], 3)
    assert counts.per_class() == {2: 0.5}
    assert counts.miou() == 0.5
    assert counts.episodes.tolist() == [0, 0, 1, 0]


def test_counts_are_integers_that_do_not_drift():
    """float32 stops counting ones at 2 ** 24."""
    counts = Counts(1)
    counts.intersection[1] = counts.union[1] = 2**24
    counts.add(count_episode({1: 1}, torch.tensor([[True]]), torch.tensor([[1]], dtype=torch.uint8)))
    assert counts.union[1] == 2**24 + 1
    assert counts.union.dtype == torch.int64


def test_order_changes_no_digit():
    episodes = random_episodes(9, n=30)
    order = np.random.default_rng(0).permutation(len(episodes))
    a, b = counted(episodes, 5), counted([episodes[i] for i in order], 5)
    assert a.miou() == b.miou()
    assert a.fb_iou() == b.fb_iou()


def test_class_without_an_episode_counts_as_zero_where_asked():
    counts = Counts(3)
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[:2] = 1
    counts.add(count_episode({1: 1}, mask == 1, mask))
    assert counts.per_class() == {1: 1.0}
    assert counts.miou() == 1.0
    assert counts.per_class((1, 3)) == {1: 1.0, 3: 0.0}
    assert counts.miou((1, 3)) == 0.5
