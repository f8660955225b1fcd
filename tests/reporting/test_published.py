"""Published numbers: those in the package, the results they are compared with, and the notes on differences."""

from statistics import fmean

import pytest

from fss_svf.reporting.markdown import markdown_table
from fss_svf.reporting.published import differences, published, rows, why_none

OPTIONS = {
    "dataset.name": "pascal", "dataset.filter_novel": True, "dataset.min_area": 2048, "recipe.epochs": 200,
    "recipe.batch_size": 8, "recipe.max_steps": None, "recipe.optimizer.lr": 0.015, "recipe.schedule.name": "constant",
    "recipe.optimizer.backbone_lr": 0.0015,
}  # fmt: skip
PROTOCOL = {"name": "svf", "episodes": 1000, "runs": 1, "seed": 321, "queries": "in_order", "resize": "pad",
            "pad": "before_normalisation", "label": "original", "shots": "train_k"}  # fmt: skip
LISTED = (364, 445, 592, 336)


def result(fold=0, options=(), protocol=(), data=(), trained=(), **changes):
    """BAM with SVF on Pascal, measured and trained as published, but for what is given."""
    return {
        "miou": 0.70, "fb_iou": 0.81, "fold": fold, "way": 1, "shot": 1, "method": "bam", "backbone": "resnet50",
        "tuning": "svf", "dataset": "pascal", "protocol": {**PROTOCOL, **dict(protocol)}, "protocol_hash": "aaaa",
        "size": 473, "seeds": [321], "backbone_weights": f"base learner, pascal fold {fold}",
        "trainable_backbone_values": 12544, "images_listed": LISTED[fold],
        "data": {"class_partition": "contiguous", "min_area": 2048, "support_annotation": "mask", **dict(data)},
        "checkpoint": {"shot": 1, "recipe": "svf", "seed": 321, "selection": "best mIoU on the novel classes",
                       "options": {**OPTIONS, **dict(options)}, **dict(trained)},
        **changes,
    }  # fmt: skip


def lines(table, start):
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith(f"| {start}")]


def test_the_rows_are_sound():
    keys = [tuple(row[k] for k in ("dataset", "backbone", "method", "tuning", "dagger", "source")) for row in rows()]
    assert len(set(keys)) == len(keys) > 30
    for row in rows():
        for values in row["miou"].values():
            *folds, mean = values
            assert len(folds) == 4
            assert all(30 < v < 85 for v in values if v is not None)
            if None not in values:
                # Papers round, and some print a mean that is not quite that of their folds.
                assert mean == pytest.approx(fmean(folds), abs=0.8), row


def test_what_is_the_same_has_no_mark():
    row = published(result())
    assert row.miou == pytest.approx((0.6938, 0.7451, 0.6880, 0.6309))
    assert (row.mean, row.fb_iou) == pytest.approx((0.6895, 0.801))
    assert differences(result(), row) == []


DIFFERENT = [
    ({"images_listed": 352}, "part of the data: other test images (fold 0 lists 352 of 364)"),
    ({"images_listed": None}, "it is not recorded whether all test images were present"),
    ({"data": {"min_area": 1}}, "min_area 1 instead of 2048"),
    ({"data": {"support_annotation": "bbox"}}, "supports annotated by bbox"),
    ({"classes_left_out": ["cat"]}, "classes left out"),
    ({"protocol": {"name": "panet", "queries": "random"}}, "protocol panet: queries random instead of in_order"),
    ({"size": 97}, "97 px instead of 473"),
    ({"precision": "bf16"}, "measured in bf16"),
    ({"backbone_weights": "IMAGENET1K_V1"}, "backbone weights IMAGENET1K_V1 instead of base learner"),
    ({"trained": {"shot": 5}}, "trained at 5 shots instead of 1"),
    ({"trained": {"selection": "last step"}}, "checkpoint: last step; published: the best on the test episodes"),
    ({"options": {"recipe.max_steps": 9}}, "training: recipe.max_steps=9 instead of None"),
    ({"options": {"dataset.name": "coco"}}, "training: dataset.name=coco instead of pascal"),
    ({"options": {"dataset.allow_missing": True}}, "training: dataset.allow_missing=True instead of False"),
    ({"options": {"dataset.filter_novel": False}}, "training: dataset.filter_novel=False instead of True"),
]


@pytest.mark.parametrize(("change", "note"), DIFFERENT, ids=[note for _, note in DIFFERENT])
def test_every_difference_is_noted(change, note):
    changed = result(**change)
    assert differences(changed, published(changed)) == [note]
    assert f"not comparable: {note}." in markdown_table([changed])


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ({}, []),
        ({"mask_mode": "full"}, ["mask_mode full instead of official"]),
        ({"query_order": None}, ["queries in the order of the annotation file"]),
    ],
)
def test_masks_and_order_of_coco_are_noted(data, note):
    given = {"class_partition": "mod4", "mask_mode": "official", "query_order": "official", **data}
    options = {"dataset.name": "coco", "recipe.epochs": 50}
    changed = result(
        dataset="coco",
        size=641,
        images_listed=26052,
        backbone_weights="base learner, coco fold 0",
        data={key: value for key, value in given.items() if value is not None},
        options=options,
    )
    assert differences(changed, published(changed)) == note


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dataset": "toy"}, "papers print none for dataset toy"),
        ({"dataset": "folder"}, "papers print none for dataset folder"),
        ({"way": 2}, "of one class at once"),
        ({"data": {"class_partition": "mod4"}}, "class_partition=contiguous, this mod4"),
        ({"tuning": "lora"}, "bam, lora, resnet50, 1-shot"),
        ({"shot": 3}, "svf, resnet50, 3-shot"),
    ],
)
def test_what_compares_with_none_says_so(change, why):
    changed = result(**change)
    assert published(changed) is None
    assert why in why_none(changed)
    assert f"Not comparable with published numbers: {why_none(changed)}." in markdown_table([changed])


def test_the_row_without_the_filter_is_that_of_a_training_without_it():
    plain = result(tuning="frozen", options={"dataset.filter_novel": False})
    assert published(plain).mean == 0.647
    assert published(result(tuning="frozen")).mean == 0.6781


def test_panet_measured_its_last_step():
    panet = result(method="panet", backbone="vgg16_plain", tuning="full", trained={"selection": "last step"})
    best = result(method="panet", backbone="vgg16_plain", tuning="full")
    assert not any("checkpoint" in note for note in differences(panet, published(panet)))
    assert f"checkpoint: {best['checkpoint']['selection']}; published: the last step" in differences(
        best, published(best)
    )


def test_published_and_difference_are_below_the_measured_line():
    table = markdown_table([result(fold, miou=0.7 + fold / 100) for fold in range(4)])
    starts = ("bam", "published [a]", "measured - published")
    (measured,), (printed,), (less,) = (lines(table, start) for start in starts)
    assert measured[5:] == ["70.00", "71.00", "72.00", "73.00", "71.50", "81.00"]
    assert printed[5:] == ["69.38", "74.51", "68.80", "63.09", "68.95", "80.10"]
    assert less[5:] == ["+0.62", "-3.51", "+3.20", "+9.91", "+2.55", "+0.90"]
    assert "- [a] published: SVF, arXiv 2206.06122 v1, Tables 1 and 2; its FB-IoU: HMNet" in table


def test_a_mean_of_some_folds_is_compared_with_none():
    (printed,) = lines(markdown_table([result(0), result(1)]), "published")
    assert printed[5:] == ["69.38", "74.51", "-", "-"]
