"""COCO's format: labels drawn from a made-up instances file, the preparation's resumption, and every way it can fail."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from fss_svf.config import from_mapping
from fss_svf.data import build, coco, coco_annotations, coco_draw, coco_json
from fss_svf.data.coco import Coco, CocoOptions, CocoSplit
from fss_svf.data.images import write_label
from fss_svf.data.index import FORMAT, ImageRow, Index
from fss_svf.errors import ConfigError, DataError
from tests.one_line import data_error

# Ids with gaps, in no order: dog is class 1, cat 2, bus 3.
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 90, "name": "bus"}]
DOG, CAT, BUS = 2, 7, 90
NUMBER = {DOG: 1, CAT: 2, BUS: 3}


def box(x, y, width, height):
    """A rectangle as a polygon. COCO fills exactly its pixels."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def blob(height, width):
    """(H, W) uint8, an outline that no polygon of few points has, and that is not its own transpose."""
    y, x = np.mgrid[:height, :width]
    return ((x / 3 - y) % 11 < 4).astype(np.uint8)


def plain_rle(mask):
    """COCO's uncompressed run lengths: down the columns, zeros first."""
    flat = mask.reshape(-1, order="F")
    ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    runs = np.diff([0, *ends]).tolist()
    return {"counts": [0, *runs] if flat[0] else runs, "size": list(mask.shape)}


def compressed_rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"counts": encoded["counts"].decode(), "size": list(mask.shape)}


# file name, height, width, then (category, segmentation, crowd) in the file's order
IMAGES = [
    ("a.jpg", 40, 60, [(CAT, [box(10, 5, 20, 10)], 0), (DOG, [box(20, 10, 20, 10)], 0)]),
    # Two parts that overlap, and a triangle on fractions of pixels.
    ("COCO_val2014_000000000042.jpg", 50, 40, [(BUS, [box(2, 3, 10, 8), box(8, 7, 10, 20)], 0),
                                               (DOG, [[20.5, 30.25, 38, 48.5, 10, 45.75]], 0)]),
    ("x.y.jpg", 64, 48, [(CAT, plain_rle(blob(64, 48)), 1), (BUS, [box(0, 0, 5, 64)], 0)]),
    ("sub/b.jpg", 30, 70, [(BUS, [box(0, 0, 70, 30)], 0), (DOG, compressed_rle(blob(30, 70)), 1)]),
    ("nothing.jpg", 33, 33, []),
    # Of the same name as the image above, in another folder; its second object leaves nothing of the first.
    ("other/b.jpg", 20, 20, [(CAT, [box(3, 3, 5, 5)], 0), (DOG, [box(0, 0, 10, 10)], 0)]),
    # Crowds come as run lengths as a rule, but a polygon is one too.
    ("only_crowd.jpg", 24, 36, [(DOG, compressed_rle(blob(24, 36)), 1), (CAT, [box(1, 1, 6, 3)], 1)]),
]  # fmt: skip
LISTED = [Path(name).with_suffix("").as_posix() for name, *_, objects in IMAGES if objects]


def content(images=IMAGES):
    """An instances file as a dict. Images of high ids come first, annotations of all images are mixed."""
    infos, annotations = [], []
    for number, (name, height, width, objects) in enumerate(images):
        infos.append({"id": 100 - number, "file_name": name, "height": height, "width": width})
        for place, (category, segmentation, crowd) in enumerate(objects):
            annotation = {"image_id": 100 - number, "category_id": category, "iscrowd": crowd, "bbox": [0, 0, 1, 1]}
            annotations.append((place, {**annotation, "segmentation": segmentation, "area": 1.0}))
    ordered = [annotation for _, annotation in sorted(annotations, key=lambda pair: pair[0])]
    return {
        "images": infos,
        "categories": [dict(category) for category in CATEGORIES],
        "annotations": [{**annotation, "id": i} for i, annotation in enumerate(ordered, 1)],
    }


def write_images(folder, images=IMAGES):
    for name, height, width, _ in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (height, width, 0)).save(path)


def tree(tmp_path):
    """The tree of a dataset whose one JSON serves as both splits."""
    root = tmp_path / "coco"
    write_images(root / "images")
    (root / "instances.json").write_text(json.dumps(content()))
    return root


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path)


def dataset(root, **changes):
    both = CocoSplit(annotations="instances.json", images="images")
    options = CocoOptions(
        root=root,
        prepared=root / "prepared",
        class_partition="mod4",
        min_area=50,
        filter_novel=True,
        too_few_images="error",
        support_annotation="mask",
        train=both,
        val=both,
        mask_mode="full",
        query_order="file",
        allow_missing=False,
        check_counts=True,
    )
    return Coco(replace(options, **changes))


def label_files(root):
    folder = root / "prepared" / "instances-full" / "labels"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def drawn(monkeypatch):
    """The names that draw_image is called with, in this process; `drawn.stop_at = n` interrupts the n-th call."""

    class Drawn(list):
        stop_at = None

    calls, original = Drawn(), coco.draw_image

    def draw_image(images, labels, mask_mode, item):
        if len(calls) == calls.stop_at:
            raise KeyboardInterrupt
        calls.append(item[0])
        return original(images, labels, mask_mode, item)

    monkeypatch.setattr(coco, "draw_image", draw_image)
    return calls


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def test_classes_are_numbered_by_ascending_category_id(root):
    assert dataset(root).prepare(0)["train"].class_names == ("dog", "cat", "bus")


def test_index_lists_annotated_images_in_the_order_of_the_file(root):
    index = dataset(root).prepare(0)["train"]
    assert index.names.tolist() == LISTED
    assert index.sizes.tolist() == [[h, w] for _, h, w, objects in IMAGES if objects]


@pytest.mark.parametrize("mask_mode", ["full", "first_polygon"])
def test_labels_are_those_of_pycocotools(root, mask_mode):
    data = dataset(root, mask_mode=mask_mode)
    data.prepare(0)
    split = data.split("val")
    reference = COCO(root / "instances.json")
    for number, name in enumerate(split.index.names):
        info = next(i for i in reference.dataset["images"] if i["file_name"] == f"{name}.jpg")
        expected = np.zeros((info["height"], info["width"]), np.uint8)
        for annotation in reference.dataset["annotations"]:
            if annotation["image_id"] != info["id"]:
                continue
            if mask_mode == "first_polygon":
                if annotation["iscrowd"]:
                    continue
                annotation = {**annotation, "segmentation": annotation["segmentation"][:1]}
            expected[reference.annToMask(annotation) == 1] = NUMBER[annotation["category_id"]]
        image, label = split.pair(number)
        assert np.array_equal(label, expected), name
        assert np.bincount(label.reshape(-1), minlength=4)[1:].tolist() == split.index.areas[number, 1:].tolist()
        # The image is that of the same name: its colour tells its size.
        assert np.abs(image.astype(int) - [*label.shape, 0]).max() <= 2


def test_labels_pixel_by_pixel(root):
    """The same by hand for rectangles: rows are y, and later objects lie on top."""
    data = dataset(root)
    data.prepare(0)
    split = data.split("train")
    labels = {name: split.label(number) for number, name in enumerate(split.index.names)}

    expected = np.zeros((40, 60), np.uint8)
    expected[5:15, 10:30] = 2
    expected[10:20, 20:40] = 1
    assert np.array_equal(labels["a"], expected)

    expected = 2 * blob(64, 48)
    expected[:, :5] = 3
    assert np.array_equal(labels["x.y"], expected)

    # Nothing of the cat is left: the index must not say that the image holds one.
    assert split.index.areas[LISTED.index("other/b")].tolist() == [0, 100, 0, 0]


def decoded(segmentation, height, width):
    """(H, W) bool by pycocotools alone."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation) == 1


def box_around(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def test_boxes_are_around_each_instance_as_if_alone(root):
    index = dataset(root).prepare(0)["train"]
    annotated = [image for image in IMAGES if image[3]]
    for number, (_, height, width, objects) in enumerate(annotated):
        for category, class_id in NUMBER.items():
            masks = [decoded(segmentation, height, width) for c, segmentation, _ in objects if c == category]
            assert index.boxes_of(number, class_id).tolist() == [box_around(mask) for mask in masks]
    # By hand: of the two rectangles that overlap the whole of each.
    assert index.boxes_of(0, 2).tolist() == [[5, 10, 15, 30]]
    assert index.boxes_of(0, 1).tolist() == [[10, 20, 20, 40]]


def test_boxes_of_first_polygons_and_of_nothing(root):
    """An instance without a pixel has none."""
    objects = [
        (CAT, [box(1, 2, 3, 4), box(10, 10, 9, 9)], 0),
        (DOG, [box(200, 200, 5, 5)], 0),
        (DOG, [box(0, 0, 2, 2)], 1),
    ]
    (root / "instances.json").write_text(json.dumps(content([("a.jpg", 40, 60, objects)])))
    first = dataset(root, mask_mode="first_polygon").prepare(0)["train"]
    assert first.boxes.tolist() == [[0, 2, 2, 1, 6, 4]]
    full = dataset(root).prepare(0)["train"]
    assert full.boxes.tolist() == [[0, 2, 2, 1, 19, 19], [0, 1, 0, 0, 2, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_any_mask_are_those_of_pycocotools(seed):
    """Over masks of every density, and polygons that leave the frame, cross themselves, or are thinner than a pixel."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        height, width = rng.integers(1, 90, 2).tolist()
        mask = (rng.random((height, width)) < rng.choice([0, 0.01, 0.3, 0.97, 1])).astype(np.uint8)
        if rng.random() < 0.5:
            mask = np.repeat(mask, 40, axis=0)[:height]  # long runs, which take several letters
        several = [rng.uniform(-20, 110, 2 * rng.integers(3, 12)).round(2).tolist() for _ in range(rng.integers(1, 4))]
        for segmentation in (several, plain_rle(mask), compressed_rle(mask)):
            parsed = json.loads(
                json.dumps({"segmentation": segmentation, "image_id": 1, "category_id": 1}),
                object_hook=coco_json.packed,
            ).segmentation
            label, boxes = coco_draw.draw_label([coco_annotations.Instance(9, False, parsed, 1)], height, width, "full")
            expected = decoded(segmentation, height, width)
            assert np.array_equal(label, 9 * expected)
            assert [list(box) for box in boxes] == ([[9, *box_around(expected)]] if expected.any() else [])


@pytest.mark.parametrize(
    "counts", [[5, 0, 25, 10, 2360], [0, 0, 2399, 1], [2400, 0], [2390, 10, 0, 0], [41, 0, 0, 3, 2356]]
)
def test_runs_without_a_pixel(counts):
    """Some tools write them; they are no part of the box."""
    rle = {"counts": counts, "size": [40, 60]}
    expected = decoded(rle, 40, 60)
    label, boxes = coco_draw.draw_label([coco_annotations.Instance(1, True, rle, 1)], 40, 60, "full")
    assert np.array_equal(label, expected)
    assert [list(box) for box in boxes] == ([[1, *box_around(expected)]] if expected.any() else [])


def test_long_runs_of_a_large_image():
    mask = np.zeros((3000, 2000), np.uint8)
    mask[2999, 999:] = mask[:5, 1500:] = 1
    label, boxes = coco_draw.draw_label(
        [coco_annotations.Instance(3, False, compressed_rle(mask), 1)], 3000, 2000, "full"
    )
    assert np.array_equal(label, 3 * mask)
    assert boxes == ((3, 0, 999, 3000, 2000),)


def test_first_polygon_leaves_out_crowds_and_further_parts(root):
    index = dataset(root, mask_mode="first_polygon").prepare(0)["train"]
    assert index.areas[LISTED.index("COCO_val2014_000000000042"), 3] == 10 * 8
    assert index.areas[LISTED.index("only_crowd")].sum() == 0


def test_mask_modes_keep_their_labels_apart(root):
    full, first = dataset(root), dataset(root, mask_mode="first_polygon")
    with_crowds = full.prepare(0)["train"].hash
    assert first.prepare(0)["train"].hash != with_crowds
    assert full.split("train").index.hash == with_crowds
    number = LISTED.index("only_crowd")
    assert full.split("train").label(number).any()
    assert not first.split("train").label(number).any()


def test_splits_of_their_own_files(root):
    """Two files, even of one name in two folders, do not overwrite each other's index and labels."""
    for split, images in (("train", IMAGES[:2]), ("val", IMAGES[2:])):
        (root / split).mkdir()
        (root / split / "instances.json").write_text(json.dumps(content(images)))
    paths = {split: CocoSplit(annotations=f"{split}/instances.json", images="images") for split in ("train", "val")}
    data = dataset(root, **paths)
    data.prepare(0)
    assert data.split("train").index.names.tolist() == LISTED[:2]
    assert data.split("val").index.names.tolist() == LISTED[2:]


def test_one_file_for_both_splits_is_drawn_once(root, drawn):
    indexes = dataset(root).prepare(0)
    assert indexes["train"].hash == indexes["val"].hash
    assert drawn == LISTED


# ---------------------------------------------------------------------------------------------------------------------
# The preparation: in parallel, once, and resumed


def test_workers_change_nothing(root, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    serial = dataset(root).prepare(0)["train"]
    files = label_files(root)
    assert set(files) == {f"{name}.png" for name in LISTED}
    (root / "prepared").rename(root / "prepared_serially")
    parallel = dataset(root).prepare(2)["train"]
    assert parallel.hash == serial.hash
    assert parallel.fingerprint == serial.fingerprint
    assert label_files(root) == files


def test_preparing_again_does_no_work(root, drawn):
    first = dataset(root).prepare(0)["train"]
    drawn.clear()
    assert dataset(root).prepare(0)["train"].hash == first.hash
    assert drawn == []


def test_interrupted_preparation_goes_on(root, drawn, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    whole = dataset(root).prepare(0)["train"]
    files = label_files(root)
    (root / "prepared").rename(root / "prepared_before")

    drawn.clear()
    drawn.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        dataset(root).prepare(0)
    with pytest.raises(DataError, match="not prepared"):
        dataset(root).split("train")

    drawn.clear()
    drawn.stop_at = None
    resumed = dataset(root).prepare(0)["train"]
    assert drawn == LISTED[4:]  # two chunks of two were finished
    assert resumed.hash == whole.hash
    assert label_files(root) == files
    assert {path.name for path in (root / "prepared" / "instances-full").iterdir()} == {"index.npz", "labels", ".lock"}


def test_edited_annotations_are_drawn_anew(root, drawn):
    """Also where the file keeps its length to the byte."""
    before = dataset(root).prepare(0)["train"]
    path = root / "instances.json"
    old = path.read_text()
    path.write_text(old.replace('"category_id": 90', '"category_id":  7'))
    assert len(path.read_text()) == len(old)
    drawn.clear()
    after = dataset(root).prepare(0)["train"]
    assert drawn == LISTED
    assert before.areas[:, 3].any()
    assert not after.areas[:, 3].any()


def test_deleted_label_is_drawn_again(root):
    """The way out that the message about a wrong label tells."""
    dataset(root).prepare(0)
    files = label_files(root)
    (root / "prepared/instances-full/labels/sub/b.png").unlink()
    dataset(root).prepare(0)
    assert label_files(root) == files


def test_rebuilding_leaves_no_index_until_it_is_whole(root, drawn):
    """A run in between must not read the old index beside labels of which some are new."""
    dataset(root).prepare(0)
    (root / "instances.json").write_text(json.dumps(content(IMAGES[:3])))
    drawn.stop_at = len(drawn) + 1
    with pytest.raises(KeyboardInterrupt):
        dataset(root).prepare(0)
    with pytest.raises(DataError, match="not prepared"):
        dataset(root).split("train")


def test_resumed_preparation_draws_labels_that_were_deleted_in_between(root, drawn, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    drawn.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        dataset(root).prepare(0)
    (root / f"prepared/instances-full/labels/{LISTED[2]}.png").unlink()
    drawn.clear()
    drawn.stop_at = None
    dataset(root).prepare(0)
    assert drawn == LISTED[2:]
    assert set(label_files(root)) == {f"{name}.png" for name in LISTED}


# The items are (number, log folder). A pool's workers import this module to find the functions.


def _logged(item):
    number, log = item
    (log / f"{number}.{os.getpid()}").touch()
    return ImageRow(f"image{number:02d}", 10 + number, 20, {1: number + 1})


def _logged_but_the_fourth(item):
    if item[0] == 4:
        raise DataError("image04: damaged; replace it")
    return _logged(item)


@pytest.mark.parametrize("workers", [0, 2])
def test_build_keeps_finished_chunks(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(build, "CHUNK", 2)
    path, logs = tmp_path / "index.npz", [tmp_path / "first", tmp_path / "second"]
    for log in logs:
        log.mkdir()

    def run(work, log):
        return build.build_index(path, [(i, log) for i in range(10)], work, ["cat"], "made", workers, "test")

    # The error of a worker's process arrives as it is.
    with data_error("image04: damaged; replace it"):
        run(_logged_but_the_fourth, logs[0])
    assert not path.exists()
    shards = (tmp_path / "index.parts" / "made").glob("*.json")
    finished = {int(shard.stem.split("-")[-1]) + i for shard in shards for i in range(2)}
    assert 4 not in finished
    if workers == 0:
        assert finished == {0, 1, 2, 3}
    # A kill while a chunk is written leaves a part that does not count.
    (tmp_path / "index.parts" / "made" / "0123abcd.partial").write_text("[[")

    index = run(_logged, logs[1])
    assert {int(entry.name.split(".")[0]) for entry in logs[1].iterdir()} == set(range(10)) - finished
    expected = Index.from_rows([_logged((i, logs[0])) for i in range(10)], ["cat"], "made")
    assert index.hash == expected.hash == Index.load(path).hash
    assert not (tmp_path / "index.parts").exists()
    # In processes of their own, and not in this one.
    assert all((int(entry.suffix[1:]) == os.getpid()) == (workers == 0) for entry in logs[1].iterdir())


def test_build_does_not_reuse_chunks_of_other_input(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    items = [(i, tmp_path) for i in range(6)]
    arguments = (["cat"], "old", 0, "test")
    with pytest.raises(DataError):
        build.build_index(tmp_path / "index.npz", items, _logged_but_the_fourth, *arguments)
    names = [f"new{i}" for i in range(6)]
    index = build.build_index(tmp_path / "index.npz", names, partial(ImageRow, height=5, width=5, areas={}), ["cat"],
                              "new", 0, "test")  # fmt: skip
    assert index.names.tolist() == names


def test_build_names_a_damaged_part(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    part = tmp_path / "index.parts" / "made" / f"v{FORMAT}-2-00000000.json"
    part.parent.mkdir(parents=True)
    part.write_text('[["image00", 1')
    with data_error(part, "delete it and prepare again"):
        build.build_index(tmp_path / "index.npz", [(i, tmp_path) for i in range(4)], _logged, ["cat"], "made", 0, "")


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def test_missing_root(tmp_path):
    with data_error(tmp_path / "nowhere", "dataset.root", "dataset=coco"):
        dataset(tmp_path / "nowhere").prepare(0)


def test_missing_image_folder(root):
    (root / "images").rename(root / "pictures")
    with data_error(root / "images", "dataset.train.images"):
        dataset(root).prepare(0)


def test_missing_annotation_file(root):
    val = CocoSplit(annotations="instances_val.json", images="images")
    with data_error(root / "instances_val.json", "dataset.val.annotations"):
        dataset(root, val=val).prepare(0)


def test_annotations_must_be_a_json_file(root):
    with pytest.raises(ConfigError, match=r"val.annotations: expected a .json file, got 'instances.txt'"):
        dataset(root, val=CocoSplit(annotations="instances.txt", images="images"))


def test_missing_images(root):
    (root / "images" / "a.jpg").unlink()
    (root / "images" / "sub" / "b.jpg").unlink()
    with data_error(root / "images", "2 of 6 images", "first a.jpg", "dataset.allow_missing=true"):
        dataset(root).prepare(0)
    index = dataset(root, allow_missing=True).prepare(0)["train"]
    with data_error("not prepared"):  # a part is not taken for the whole
        dataset(root).split("train")
    assert index.names.tolist() == [name for name in LISTED if name not in ("a", "sub/b")]
    # Once the download is finished all of them are taken up.
    write_images(root / "images")
    assert dataset(root, allow_missing=True).prepare(0)["train"].names.tolist() == LISTED


def test_no_image_at_all(root):
    (root / "images").rename(root / "pictures")
    (root / "images").mkdir()
    with data_error(root / "images", "none of the 6 images", "first a.jpg"):
        dataset(root, allow_missing=True).prepare(0)


def test_image_of_another_size(root):
    Image.new("RGB", (40, 60)).save(root / "images" / "a.jpg")
    with data_error(root / "images" / "a.jpg", "40 x 60", "annotated as 60 x 40", "replace"):
        dataset(root).prepare(0)


def test_image_that_is_none(root):
    (root / "images" / "a.jpg").write_text("<html>404</html>")
    with data_error(root / "images" / "a.jpg", "not an image", "replace"):
        dataset(root).prepare(0)


def test_unprepared(root):
    with data_error(root / "prepared", f"fss-svf prepare dataset=coco dataset.root={root}"):
        dataset(root).split("train")


def test_label_of_another_size(root):
    data = dataset(root)
    data.prepare(0)
    split = data.split("train")
    path = split.labels / "a.png"
    write_label(path, np.zeros((39, 60), np.uint8))
    with data_error(path, "label of 60 x 39", "image of 60 x 40", "delete it and prepare"):
        split.pair(0)


def test_image_lost_or_damaged_since(root):
    data = dataset(root)
    data.prepare(0)
    split = data.split("train")
    path = split.images / "a.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    with data_error(path, "cannot be read", "replace"):
        split.image(0)
    path.unlink()
    with data_error(path, "no such file"):
        split.image(0)


# ---------------------------------------------------------------------------------------------------------------------
# The config


def test_config_holds_the_numbers_of_the_papers(monkeypatch):
    monkeypatch.setenv("FSS_SVF_DATA", "/data")
    path = Path(__file__).parents[2] / "conf" / "dataset" / "coco.yaml"
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert values.pop("name") == "coco"
    options = from_mapping(CocoOptions, values)
    assert (options.min_area, options.class_partition, options.mask_mode) == (2 * 32 * 32, "mod4", "official")
    assert options.query_order == "official"
    del values["query_order"]  # as in a checkpoint of before this key
    assert from_mapping(CocoOptions, values).query_order == "file"
    assert options.filter_novel
    assert not options.allow_missing
    assert (options.root, options.prepared) == (Path("/data/coco"), Path("/data/coco/prepared"))


def kill_own_process(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line_that_says_how_to_go_on(tmp_path):
    with data_error("process was killed", "run the same command again"):
        build.build_index(tmp_path / "index.npz", range(3), kill_own_process, ("a",), "made", 1, "title")
