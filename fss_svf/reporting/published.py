"""Numbers printed in papers, and the differences between their conditions and those of a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

FOLDS = 4
# SVF at the official code's ranks is compared with the papers' SVF too.
_SAME_TUNING = {"svf_official": "svf"}


@dataclass(frozen=True)
class Published:
    """The numbers of a paper for one dataset, backbone, method and tuning at one shot. None: not printed.

    miou    mIoU of folds 0 to 3, fractions
    mean    mean mIoU over the four folds
    fb_iou  mean FB-IoU over the four folds
    source  the paper and its table
    dagger  whether training left out images with a novel class
    entry   the row of published.yaml
    """

    miou: tuple[float | None, ...]
    mean: float | None
    fb_iou: float | None
    source: str
    dagger: bool
    entry: Mapping[str, Any]


def published(result: Mapping[str, Any]) -> Published | None:
    """The published row to compare a result with, or None. Of two rows, the one with the result's filter of novel classes.

    Other classes (another paper's partition, several ways) are another task, for which papers print no number.
    """
    facts, partition = _facts(), result.get("data", {}).get("class_partition")
    of_dataset = facts["datasets"].get(result["dataset"])
    if of_dataset is None or result.get("way", 1) != 1 or partition not in (None, of_dataset["class_partition"]):
        return None
    wanted = {key: result[key] for key in ("dataset", "backbone", "method")}
    wanted["tuning"] = _SAME_TUNING.get(result["tuning"], result["tuning"])
    rows = [
        row
        for row in facts["rows"]
        if all(row[key] == value for key, value in wanted.items()) and result["shot"] in row["miou"]
    ]
    if not rows:
        return None
    dagger = _options(result).get("dataset.filter_novel", True)
    row = next((row for row in rows if row["dagger"] == dagger), rows[0])
    *folds, mean = (_fraction(value) for value in row["miou"][result["shot"]])
    fb_iou = _fraction(row.get("fb_iou", {}).get(result["shot"]))
    source = facts["sources"][row["source"]]
    if fb_iou is not None and row["fb_iou_source"] != row["source"]:
        source += f"; its FB-IoU: {facts['sources'][row['fb_iou_source']]}"
    return Published(tuple(folds), mean, fb_iou, source, row["dagger"], row)


def why_none(result: Mapping[str, Any]) -> str:
    """Why there is no published number to compare with a result."""
    dataset, partition = result["dataset"], result.get("data", {}).get("class_partition")
    of_dataset = _facts()["datasets"].get(dataset)
    others = [row for row in _facts()["others"] if row["dataset"] == dataset]
    if of_dataset is None and not others:
        return f"papers print none for dataset {dataset}"
    if result.get("way", 1) != 1:
        return "those recorded here are of one class at once"
    if of_dataset is None:
        return f"there is none here for {result['method']}; {', '.join(map(_other_in_words, others))}"
    if partition not in (None, of_dataset["class_partition"]):
        return f"those here have class_partition={of_dataset['class_partition']}, this {partition}"
    return f"there is none here for {result['method']}, {result['tuning']}, {result['backbone']}, {result['shot']}-shot"


def _other_in_words(row: Mapping[str, Any]) -> str:
    shots, values = (" / ".join(map(str, of)) for of in (row["miou"], row["miou"].values()))
    source = _facts()["sources"][row["source"]]
    return (
        f"{row['method']} on {row['backbone']} has {values} at {shots} shots by protocol {row['protocol']} ({source})"
    )


def differences(result: Mapping[str, Any], row: Published) -> list[str]:
    """The differences in data, measurement and training between a result and a published number, a phrase for each."""
    return [*_of_data(result), *_of_measurement(result, row), *_of_training(result, row)]


def _of_data(result: Mapping[str, Any]) -> Iterator[str]:
    expected, data = _facts()["datasets"][result["dataset"]], result.get("data", {})
    listed, all_images = result.get("images_listed"), expected["images"][result["fold"]]
    if listed is None:
        yield "it is not recorded whether all test images were present"
    elif listed != all_images:
        yield f"part of the data: other test images (fold {result['fold']} lists {listed:,} of {all_images:,})"
    area = data.get("min_area", expected["min_area"])
    if area != expected["min_area"]:
        yield f"min_area {area} instead of {expected['min_area']}"
    masks = data.get("mask_mode")
    if masks not in (None, expected.get("mask_mode")):
        yield f"mask_mode {masks} instead of {expected['mask_mode']}"
    if masks is not None and result["protocol"]["queries"] == "in_order" and "query_order" not in data:
        yield "queries in the order of the annotation file"
    if data.get("support_annotation", "mask") != "mask":
        yield f"supports annotated by {data['support_annotation']}"
    if "episodes" in data:
        yield "episodes read from a file"
    if result.get("classes_left_out"):
        yield "classes left out"


def _of_measurement(result: Mapping[str, Any], row: Published) -> Iterator[str]:
    facts = _facts()
    size = facts["protocols"][_training(row)["protocol"]].get("size", facts["datasets"][result["dataset"]]["size"])
    expected, used = facts["protocols"][_training(row)["protocol"]], result["protocol"]
    other = []
    for key, value in expected.items():
        # `shots` has no meaning at one shot, and more runs are the same measurement.
        if (key, result["shot"]) == ("shots", 1) or key in ("runs", "size") or used.get(key, value) == value:
            continue
        other.append(f"{key} {used[key]} instead of {value}")
    if other:
        yield f"protocol {used['name']}: {', '.join(other)}"
    if result["size"] != size:
        yield f"{result['size']} px instead of {size}"
    if result.get("precision", "float32") != "float32":
        yield f"measured in {result['precision']}"
    if "note" in row.entry:
        yield f"published: {row.entry['note']}"


def _of_training(result: Mapping[str, Any], row: Published) -> Iterator[str]:
    trained, expected = result["checkpoint"], _training(row)
    weights = result["backbone_weights"].split(", ")[0]
    if weights != expected["weights"]:
        yield f"backbone weights {weights} instead of {expected['weights']}"
    if trained is None:
        yield "nothing was trained"
        return
    if expected["trained_k"] and trained["shot"] != result["shot"]:
        yield f"trained at {trained['shot']} shots instead of {result['shot']}"
    if expected.get("selection") == "last step":
        if trained["selection"] != "last step":
            yield f"checkpoint: {trained['selection'].split(':')[0]}; published: the last step"
    elif not trained["selection"].startswith("best"):
        yield f"checkpoint: {trained['selection'].split(':')[0]}; published: the best on the test episodes"
    elif "base classes" in trained["selection"]:
        chosen = trained["selection"].split(":")[0].removeprefix("best mIoU on ")
        yield f"checkpoint chosen on {chosen}; published: the best on the test episodes"
    options = _options(result)
    if not options:
        yield "options of the training are not recorded"
        return
    wanted = {"dataset.name": result["dataset"], "dataset.filter_novel": row.dagger, "dataset.allow_missing": False}
    wanted |= {"dataset.train_list": None, "dataset.support_annotation": "mask", "validate.held_out": None}
    wanted |= {"dataset.train_fraction": 1.0}
    wanted |= {"dataset.min_area": _facts()["datasets"][result["dataset"]]["min_area"], "overfit": None}
    other = []
    for key, value in {**wanted, **expected["options"]}.items():
        if options.get(key, value) != value:
            other.append(f"{key}={options[key]} instead of {value}")
    if "dataset.name" not in options:
        other.append("its dataset's options are not recorded")
    if other:
        yield f"training: {', '.join(other)}"


def _training(row: Published) -> Mapping[str, Any]:
    training: Mapping[str, Any] = _facts()["trainings"][row.entry["training"]]
    return training


def _options(result: Mapping[str, Any]) -> Mapping[str, Any]:
    options: Mapping[str, Any] = (result["checkpoint"] or {}).get("options", {})
    return options


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


@cache
def _facts() -> Mapping[str, Any]:
    """The content of published.yaml."""
    text = files("fss_svf.reporting").joinpath("published.yaml").read_text(encoding="utf-8")
    facts: Mapping[str, Any] = yaml.safe_load(text)
    return facts


def rows() -> Sequence[Mapping[str, Any]]:
    """Every row of published.yaml."""
    every: Sequence[Mapping[str, Any]] = _facts()["rows"]
    return every
