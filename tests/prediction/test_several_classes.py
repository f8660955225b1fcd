"""Several classes in one photograph: each class as it is segmented alone, and the likeliest where there are several."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from fss_svf.data.images import PALETTE
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.evaluation.at_label import rows_at_label
from fss_svf.prediction.examples import read_classes
from fss_svf.prediction.overlays import colour_of, overlay, overlay_classes
from fss_svf.prediction.segmenter import Segmenter
from fss_svf.prediction.support import SupportFeatures, load_classes, save_classes
from tests.cli.test_cli import one_line
from tests.evaluation.test_engine import task_of
from tests.one_line import data_error
from tests.prediction.test_predict import picture, save, segmenter_of, square_mask

TINY = {"name": "tiny", "width": 8}
VERB = ("predict", "method=prototype", "backbone=tiny", "backbone.width=8", "size=65")


def label_of(margins):
    """The rule in words, pixel by pixel: the class with the highest probability of foreground where it exceeds one half."""
    label = np.zeros(margins.shape[1:], int)
    for y, x in np.ndindex(label.shape):
        probabilities = [1 / (1 + np.exp(-float(margin))) for margin in margins[:, y, x]]
        if max(probabilities) > 0.5:
            label[y, x] = 1 + int(np.argmax(probabilities))
    return label


@pytest.mark.parametrize("name", ["baseline", "bam", "panet", "ssp"])
def test_several_classes_are_the_rule_over_each_alone(toy_root, name):
    task = task_of(toy_root, name, shot=1)
    segmenter = segmenter_of(task)
    image, label = task.split.pair(0)
    # Two halves and the whole of what is there: classes that overlap in what they say.
    left, right = (label > 0).astype(np.uint8), (label > 0).astype(np.uint8)
    middle = int(np.median(np.nonzero(label)[1]))
    left[:, middle:] = right[:, :middle] = 0
    classes = [segmenter.learn([image], [mask]) for mask in (left, right, (label == 0).astype(np.uint8))]
    queries = [task.split.image(n) for n in (1, 2)]
    margins = [alone(segmenter, query, classes) for query in queries]
    for query, expected, found in zip(queries, margins, segmenter.segment(queries, classes)):
        assert np.array_equal(found, label_of(expected))
        for n, one in enumerate(classes):
            assert np.array_equal(segmenter.segment([query], one)[0], expected[n] > 0)
            assert np.array_equal(segmenter.segment([query], [one])[0], expected[n] > 0)
    assert len(np.unique(np.concatenate([label_of(m).ravel() for m in margins]))) > 1


def alone(segmenter, image, classes):
    """(N, H, W) margins of the classes, each predicted by itself."""
    found = []
    with segmenter.inference.running():
        batch = segmenter._input([image])
        none = torch.zeros(0, *batch.shape[-2:], dtype=torch.uint8)
        (query,), _ = segmenter.inference.encode(batch, none, torch.arange(1), torch.arange(0))
        for one in classes:
            compared = segmenter.inference.compare(query, one.rows)
            logits = segmenter.inference.segment(query, [compared], tuple(batch.shape[-2:])).logits
            rows = rows_at_label(logits, image.shape[:2], segmenter.protocol, 0, image.shape[0])
            found.append((rows[0, 1] - rows[0, 0]).numpy())
    return np.stack(found)


def test_a_mistake_of_a_caller(toy_root):
    segmenter = segmenter_of(task_of(toy_root))
    one = segmenter.learn([picture()], [square_mask(1)])
    for classes in ([], [one] * 255):
        with pytest.raises(ConfigError, match=f"expected 1 to 254 classes, got {len(classes)}"):
            segmenter.segment([picture()], classes)


def test_classes_are_saved_together(tmp_path):
    segmenter = Segmenter.untrained("prototype", TINY, "cpu", size=65)
    learnt = {name: segmenter.learn([picture(seed)], [square_mask(1)], [name]) for seed, name in enumerate(("b", "a"))}
    save_classes(tmp_path / "two.pt", learnt)
    loaded = load_classes(tmp_path / "two.pt")
    assert list(loaded) == ["b", "a"]
    assert [one.names for one in loaded.values()] == [("b",), ("a",)]
    together = [segmenter.segment([picture(5)], list(classes.values()))[0] for classes in (learnt, loaded)]
    assert np.array_equal(*together)
    with pytest.raises(WeightsError, match="holds 2 classes"):
        SupportFeatures.load(tmp_path / "two.pt")
    learnt["a"].save(tmp_path / "one.pt")
    assert list(load_classes(tmp_path / "one.pt")) == [""]


# The verb


def patch(where, colour):
    """A dark photograph of 60 x 40 with a coloured patch, and its mask."""
    image, mask = np.full((40, 60, 3), 30, np.uint8), np.zeros((40, 60), np.uint8)
    image[where], mask[where] = colour, 255
    return image, mask


LEFT, RIGHT = (slice(8, 32), slice(4, 26)), (slice(8, 32), slice(34, 56))
RED, GREEN = (220, 30, 30), (30, 220, 30)


@pytest.fixture
def classes(tmp_path):
    """support/green with one example, support/red with two."""
    for name, number, where, colour in (
        ("red", 0, LEFT, RED),
        ("red", 1, RIGHT, RED),
        ("green", 0, LEFT, GREEN),
    ):
        image, mask = patch(where, colour)
        save(tmp_path / "support" / name / f"{number}.png", image)
        save(tmp_path / "support" / name / f"{number}.mask.png", mask)
    return tmp_path / "support"


def test_a_folder_of_folders_gives_labels_a_legend_and_a_row_for_each_class(fss, classes, tmp_path):
    both = patch(LEFT, GREEN)[0]
    both[RIGHT] = RED
    save(tmp_path / "queries" / "both.png", both)
    save(tmp_path / "queries" / "red.png", patch(RIGHT, RED)[0])
    status, _, err = fss(*VERB, f"support={classes}", "query=queries", "out=out")
    assert status == 0, err
    assert "examples of 2 classes encoded: 3, into" in err
    assert "green found in " in err
    out = tmp_path / "out"
    assert (out / "classes.txt").read_text().split() == ["green", "red"]
    assert (out / "support" / "red" / "1.overlay.jpg").exists()
    segmenter = Segmenter.untrained("prototype", TINY, "cpu", size=65)
    learnt = [
        segmenter.learn([e.image for e in given], [e.mask for e in given]) for given in read_classes(classes).values()
    ]
    rows = list(csv.DictReader((out / "predictions.csv").open(encoding="utf-8")))
    assert [(row["file"], row["class"]) for row in rows] == [
        (f"{stem}.png", name) for stem in ("both", "red") for name in ("green", "red")
    ]
    for stem, image in (("both", both), ("red", patch(RIGHT, RED)[0])):
        written = Image.open(out / f"{stem}.png")
        label = np.asarray(written)
        assert written.mode == "P"
        assert written.getpalette()[: 3 * 3] == PALETTE[:3].ravel().tolist()
        assert (label != segmenter.segment([image], learnt)[0]).mean() < 1e-3  # in float32, and there in a batch of two
        for number, row in enumerate((row for row in rows if row["file"] == f"{stem}.png"), 1):
            assert float(row["share"]) == pytest.approx((label == number).mean(), abs=1e-5)
        shown = Image.open(out / f"{stem}.overlay.jpg")
        assert shown.height > 40  # the legend
    assert set(np.unique(np.asarray(Image.open(out / "both.png")))) >= {1, 2}

    status, _, err = fss(*VERB, f"support={out / 'support.pt'}", "query=queries", "out=again")
    assert status == 0, err
    for name in ("both.png", "classes.txt"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_mistake_in_a_folder_of_classes_is_one_line(fss, classes, tmp_path):
    save(tmp_path / "q.png", picture())
    for out in ("support", "support/new", "support/red", "support/red/masks"):
        status, _, err = fss(*VERB, f"support={classes}", "query=q.png", f"out={out}", "overwrite=true")
        assert status == 1
        assert "among the files of support" in one_line(err)
    (classes / "blue").mkdir()
    with data_error("blue: no example of this class"):
        read_classes(classes)
    (classes / "blue").rmdir()
    (classes / "red" / "1.mask.png").unlink()
    with data_error("red/1.png: no annotation"):
        read_classes(classes)
    for number in range(255):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    with data_error("many: 255 folders of classes", "up to 254"):
        read_classes(tmp_path / "many")


def test_a_legend_says_which_classes_are_there():
    label = np.zeros((40, 60), np.uint8)
    label[5:20, 5:20], label[5:20, 30:50] = 1, 3
    names = ["cat", "dog", "a class of a name that is longer than the photograph is wide"]
    shown = overlay_classes(picture(), label, names)
    assert shown.shape[0] > 40 + 2 * 14
    assert (shown[5, 10] == colour_of(1)).all()
    assert (shown[5, 40] == colour_of(3)).all()
    below = shown[40:].reshape(-1, 3)
    assert [(below == colour_of(n)).all(1).sum() > 50 for n in (1, 2, 3)] == [True, False, True]
    nothing = overlay_classes(picture(), np.zeros((40, 60), np.uint8), names)
    assert np.array_equal(nothing[:40, :60], overlay(picture(), np.zeros((40, 60), np.uint8)))
    assert (nothing[40:] < 128).any()
