"""mIoU and FB-IoU against torchmetrics and against plain loops, on random and on adversarial input."""

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from fss_svf.evaluation.metric import count_masks, count_true, scores
from tests.plain_evaluation import plain_count

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
    """(2 + C, 2), the sum over all episodes."""
    counts = np.zeros((2 + num_classes, 2), np.int64)
    for class_id, said, mask in episodes:
        counts[[0, 1, 1 + class_id]] += count_masks(said[None], mask)[0].numpy()
    return counts


def scored(episodes, num_classes, zero=False):
    found = scores(counted(episodes, num_classes)[None], zero)
    per_class = {c: iou for c, iou in enumerate(found.per_class[0], 1) if not np.isnan(iou)}
    return float(found.miou[0]), float(found.fb_iou[0]), per_class


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
    miou, fb_iou, per_class = scored(episodes, 5)
    assert (miou, fb_iou) == pytest.approx(plain(episodes, (1, 3, 4)), abs=1e-12)

    pooled = JaccardIndex(task="multiclass", num_classes=2, ignore_index=255, average="none")
    for c in (1, 3, 4):
        of_class = JaccardIndex(task="multiclass", num_classes=2, ignore_index=255, average="none")
        for class_id, said, mask in episodes:
            if class_id == c:
                of_class.update(said.long().flatten(), mask.long().flatten())
        assert per_class[c] == pytest.approx(of_class.compute()[1].item(), abs=1e-6)
    for _, said, mask in episodes:
        pooled.update(said.long().flatten(), mask.long().flatten())
    assert fb_iou == pytest.approx(pooled.compute().mean().item(), abs=1e-6)


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
    assert scored(episodes, 3)[:2] == (miou, fb_iou) == plain(episodes, (1, 2, 3))


def test_an_absent_class_is_left_out_or_zero():
    episodes = [one([[1, 1]], [[1, 0]], class_id=2)]
    assert scored(episodes, 3)[::2] == (0.5, {2: 0.5})
    assert scored(episodes, 3, zero=True)[::2] == (0.5 / 3, {1: 0.0, 2: 0.5, 3: 0.0})


def test_counts_are_integers_that_do_not_drift():
    """float32 stops counting ones at 2 ** 24."""
    counts = count_masks(torch.tensor([[[True]]]), torch.tensor([[1]], dtype=torch.uint8))
    assert counts.dtype == torch.int64
    counts[0, 2] += 2**24
    assert counts[0, 2].tolist() == [2**24 + 1] * 2


@pytest.mark.parametrize("ways", [1, 3])
def test_episodes_are_counted_together_as_one_by_one(ways):
    g = torch.Generator().manual_seed(ways)
    truth = torch.randint(0, ways + 1, (9, 7), generator=g, dtype=torch.uint8)
    truth[0] = 255
    predicted = torch.randint(0, ways + 1, (5, 9, 7), generator=g, dtype=torch.uint8)
    counts = count_masks(predicted, truth, ways)
    assert count_true(truth, ways).tolist() == [(truth == way).sum() for way in range(1, ways + 1)]
    for i in range(5):
        measured = {way: way for way in range(1, ways + 1)}
        expected = plain_count(predicted[i].numpy(), truth.numpy(), measured, tuple(measured))
        assert counts[i].tolist() == expected.tolist()
