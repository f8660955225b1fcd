"""Pascal-5i from VOC's and SBD's own trees: whose label wins, the lists, the papers' counts, all that can be missing."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import scipy.sparse
from PIL import Image
from scipy.io import savemat

from fss_svf.data import pascal
from fss_svf.data.counts import counts_of_folds
from fss_svf.data.fold import Fold
from fss_svf.data.images import read_label, write_label
from fss_svf.data.pascal import PAPERS, Pascal, PascalOptions, sbd_train_noval
from fss_svf.data.sbd import read_sbd_label
from fss_svf.errors import DataError
from tests.one_line import data_error
from tests.real import real_data

SHAPE = (40, 56)
# In VOC's and in SBD's list; in VOC's alone; in SBD's alone.
BOTH, VOC_ONLY, SBD_ONLY = "2008_000008", "2007_000032", "2008_000015"
TRAIN, VAL = [BOTH, SBD_ONLY, VOC_ONLY], ["2007_000033", "2007_000042"]


def label_of(name, source):
    """(H, W) uint8; VOC draws another class than SBD, and void around it."""
    label = np.zeros(SHAPE, np.uint8)
    number = 1 + sum(map(ord, name)) % 10
    if source == "voc":
        label[4:30, 4:30] = 255
        label[5:29, 5:29] = number + 10
    else:
        label[5:29, 5:29] = number
    return label


def write_mat(path, label, compressed=True):
    """As SBD's files: a struct with the boundaries of every class as sparse matrices, and the segmentation."""
    boundaries = np.empty((20, 1), object)
    for c in range(20):
        boundaries[c, 0] = scipy.sparse.csc_matrix((label == c + 1).astype(np.uint8))
    present = np.unique(label[label > 0])[:, None]
    fields = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
    savemat(path, {"GTcls": fields}, do_compression=compressed)


def tree(tmp_path):
    """Both trees, with the three kinds of training name and two val names."""
    root = tmp_path / "pascal"
    voc, cls = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset" / "cls"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets" / "Segmentation", cls):
        folder.mkdir(parents=True)
    lists = {"train": [BOTH, VOC_ONLY], "val": VAL}
    for split, names in lists.items():
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for name in (*TRAIN, *VAL):
        Image.fromarray(np.full((*SHAPE, 3), 90, np.uint8)).save(voc / "JPEGImages" / f"{name}.jpg")
        if name != SBD_ONLY:
            write_label(voc / "SegmentationClass" / f"{name}.png", label_of(name, "voc"))
        if name != VOC_ONLY:
            write_mat(cls / f"{name}.mat", label_of(name, "sbd"))
    (tmp_path / "list.txt").write_text("\n".join(TRAIN) + "\n")
    return root


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path)


def dataset(root, **changes):
    """Of the tree's own three training names, unless `train_list` says otherwise."""
    values = {
        "root": root,
        "prepared": root / "prepared",
        "class_partition": "contiguous",
        "min_area": 100,
        "filter_novel": True,
        "too_few_images": "error",
        "support_annotation": "mask",
        "train_list": root.parent / "list.txt",
        "allow_missing": False,
        "check_counts": False,
    }
    return Pascal(PascalOptions(**{**values, **changes}))


def labels(data, split):
    opened = data.split(split)
    return {str(name): opened.label(i) for i, name in enumerate(opened.index.names)}


# ---------------------------------------------------------------------------------------------------------------------
# Whose label


@pytest.mark.parametrize("workers", [0, 2])
def test_label_is_vocs_where_both_have_one(root, workers):
    data = dataset(root)
    indexes = data.prepare(workers)
    assert indexes["train"].names.tolist() == TRAIN
    assert indexes["val"].names.tolist() == VAL
    found = {**labels(data, "train"), **labels(data, "val")}
    assert set(found) == {*TRAIN, *VAL}
    for name, label in found.items():
        source = "sbd" if name == SBD_ONLY else "voc"
        assert np.array_equal(label, label_of(name, source)), name
        assert (label == 255).any() == (source == "voc")


def test_areas_leave_out_void(root):
    index = dataset(root).prepare(0)["train"]
    for i, name in enumerate(TRAIN):
        label = label_of(name, "sbd" if name == SBD_ONLY else "voc")
        assert index.areas[i, label[10, 10]] == 24 * 24 == index.areas[i].sum()


def test_merged_folder_gives_the_same_index(root):
    """SegmentationClassAug, as others have merged it: read where it lies, nothing is written beside the index."""
    before = {split: index.hash for split, index in dataset(root).prepare(0).items()}
    shutil.move(root / "prepared" / "labels", root / "VOCdevkit" / "VOC2012" / "SegmentationClassAug")
    shutil.rmtree(root / "prepared")
    shutil.rmtree(root / "benchmark_RELEASE")
    data = dataset(root)
    assert {split: index.hash for split, index in data.prepare(0).items()} == before
    assert not (root / "prepared" / "labels").exists()
    assert set(labels(data, "train")) == set(TRAIN)


def test_labels_of_another_source_are_not_taken_for_those_prepared(root):
    dataset(root).prepare(0)
    shutil.copytree(root / "prepared" / "labels", root / "SegmentationClassAug")
    with data_error("not prepared", "fss-svf prepare dataset=pascal"):
        dataset(root).split("train")


def test_root_may_be_voc2012_itself(root):
    before = dataset(root).prepare(0)["train"].hash
    shutil.move(root / "benchmark_RELEASE", root / "VOCdevkit" / "VOC2012" / "benchmark_RELEASE")
    moved = dataset(
        root / "VOCdevkit" / "VOC2012", train_list=root.parent / "list.txt", prepared=root.parent / "elsewhere"
    )
    assert moved.prepare(0)["train"].hash == before
    assert (root.parent / "elsewhere" / "labels" / f"{SBD_ONLY}.png").exists()


def test_preparing_again_does_no_work(root, monkeypatch):
    before = dataset(root).prepare(0)["train"].hash
    monkeypatch.setattr(pascal, "merge_label", lambda *_: pytest.fail("made again"))
    assert dataset(root).prepare(0)["train"].hash == before


def test_replaced_mat_is_read_again(root):
    before = dataset(root).prepare(0)["train"]
    write_mat(root / "benchmark_RELEASE/dataset/cls" / f"{SBD_ONLY}.mat", np.full(SHAPE, 7, np.uint8), compressed=False)
    after = dataset(root).prepare(0)["train"]
    assert before.areas[1, 7] != after.areas[1, 7] == SHAPE[0] * SHAPE[1]


# ---------------------------------------------------------------------------------------------------------------------
# Lists


def test_papers_list_is_sbds_then_vocs_each_once(root, monkeypatch):
    monkeypatch.setattr(pascal, "sbd_train_noval", lambda: [BOTH, SBD_ONLY])
    index = dataset(root, train_list=None, check_counts=False).prepare(0)["train"]
    assert index.names.tolist() == [BOTH, SBD_ONLY, VOC_ONLY]


def test_shipped_list():
    names = sbd_train_noval()
    assert len(names) == len(set(names)) == 5623
    assert {BOTH, SBD_ONLY} <= set(names)
    assert VOC_ONLY not in names


def test_list_lines_of_other_projects(root):
    """Two columns with folders, as semseg writes them; a name twice counts once."""
    lines = [f"JPEGImages/{name}.jpg SegmentationClassAug/{name}.png" for name in (*TRAIN, TRAIN[0])]
    (root.parent / "two.txt").write_text("\n".join(lines) + "\n")
    assert dataset(root, train_list=root.parent / "two.txt").prepare(0)["train"].names.tolist() == TRAIN


def test_training_on_a_val_image_is_refused(root):
    (root.parent / "list.txt").write_text("\n".join([*TRAIN, VAL[1]]) + "\n")
    with data_error("1 names of the training list", VAL[1], "val list"):
        dataset(root).prepare(0)


def test_each_list_has_its_own_index(root):
    """Also two of one name, and one that was edited."""
    dataset(root).prepare(0)
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "list.txt").write_text(f"{VOC_ONLY}\n")
    with data_error("not prepared"):
        dataset(root, train_list=root.parent / "elsewhere" / "list.txt").split("train")
    (root.parent / "short.txt").write_text(f"{BOTH}\n")
    other = dataset(root, train_list=root.parent / "short.txt")
    assert len(other.prepare(0)["train"]) == 1
    assert len(dataset(root).split("train").index) == 3
    assert len(other.split("train").index) == 1


# ---------------------------------------------------------------------------------------------------------------------
# What is missing or damaged


def test_most_of_the_papers_list_is_missing_here(root):
    with data_error("files are missing", "finish the download", "allow_missing=true", "3 of train and 2 of val"):
        dataset(root, train_list=None).prepare(0)
    report = (root / "prepared" / "missing.txt").read_text().splitlines()
    assert len(report) == 2 * (5623 - 2)
    data = dataset(root, train_list=None, allow_missing=True)
    assert sorted(data.prepare(0)["train"].names) == sorted(TRAIN)
    assert sorted(labels(data, "train")) == sorted(TRAIN)


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (f"VOCdevkit/VOC2012/JPEGImages/{SBD_ONLY}.jpg", f"JPEGImages/{SBD_ONLY}.jpg"),
        (f"benchmark_RELEASE/dataset/cls/{SBD_ONLY}.mat", f"cls/{SBD_ONLY}.mat"),
        (f"VOCdevkit/VOC2012/SegmentationClass/{VOC_ONLY}.png", f"SegmentationClass/{VOC_ONLY}.png"),
    ],
)
def test_one_missing_file(root, lost, told):
    (root / lost).unlink()
    with data_error("1 files are missing", told, "2 of train and 2 of val"):
        dataset(root).prepare(0)
    kept = dataset(root, allow_missing=True).prepare(0)["train"].names.tolist()
    assert kept == [name for name in TRAIN if name not in lost]


def test_lost_png_of_an_image_in_sbd_falls_back_to_its_mat(root):
    (root / f"VOCdevkit/VOC2012/SegmentationClass/{BOTH}.png").unlink()
    data = dataset(root)
    data.prepare(0)
    assert np.array_equal(labels(data, "train")[BOTH], label_of(BOTH, "sbd"))


def test_nothing_left_of_a_split_is_an_error_even_when_missing_is_allowed(root):
    for name in VAL:
        (root / f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg").unlink()
    with data_error("3 of train and 0 of val"):
        dataset(root, allow_missing=True).prepare(0)


def test_half_a_mat(root):
    path = root / "benchmark_RELEASE/dataset/cls" / f"{SBD_ONLY}.mat"
    whole = path.read_bytes()
    for length in (0, 60, 130, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with data_error(path, "cannot be read", "replace it"):
            dataset(root).prepare(0)
    path.write_bytes(whole)
    assert len(dataset(root).prepare(0)["train"]) == 3


def test_damage_inside_a_mat_is_found_before_it_is_parsed(tmp_path):
    path = tmp_path / "a.mat"
    write_mat(path, label_of("a", "sbd"))
    whole = path.read_bytes()
    assert np.array_equal(read_sbd_label(path), label_of("a", "sbd"))
    refused = 0
    for place in range(136, len(whole)):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        path.write_bytes(raw)
        try:
            found = read_sbd_label(path)
        except DataError:
            refused += 1
        else:
            # A few bits of a compressed stream can change without changing what it says.
            assert np.array_equal(found, label_of("a", "sbd"))
    assert refused > 0.9 * (len(whole) - 136)


@pytest.mark.parametrize("content", [{"other": np.ones(3)}, {"GTcls": np.ones((4, 4))}])
def test_mat_of_something_else(tmp_path, content):
    path = tmp_path / "a.mat"
    savemat(path, content)
    with data_error(path, "cannot be read"):
        read_sbd_label(path)


def test_mat_whose_segmentation_is_none(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"GTcls": {"Segmentation": np.ones((4, 4), np.float64)}})
    with data_error(path, "float64"):
        read_sbd_label(path)


def test_missing_mat(tmp_path):
    with data_error(tmp_path / "a.mat", "no such file"):
        read_sbd_label(tmp_path / "a.mat")


def test_label_and_image_of_other_sizes(root):
    write_mat(root / "benchmark_RELEASE/dataset/cls" / f"{SBD_ONLY}.mat", np.ones((56, 40), np.uint8))
    with data_error(f"{SBD_ONLY}.png", "label of 40 x 56", "image of 56 x 40"):
        dataset(root).prepare(0)


def test_no_voc(root):
    shutil.rmtree(root / "VOCdevkit")
    with data_error("no VOC 2012 under", root, "dataset.root"):
        dataset(root).prepare(0)


def test_no_labels_of_sbd(root):
    shutil.rmtree(root / "benchmark_RELEASE")
    with data_error("no labels under", "SegmentationClassAug", root):
        dataset(root).prepare(0)


def test_no_root(tmp_path):
    with data_error("no VOC 2012 under", tmp_path / "gone"):
        dataset(tmp_path / "gone").prepare(0)


def test_unprepared(root):
    with data_error("not prepared", "fss-svf prepare dataset=pascal"):
        dataset(root).split("val")


# ---------------------------------------------------------------------------------------------------------------------
# Archives


def test_vocs_test_set_is_not_taken_for_it(root):
    """It lies on the same page and has the same folders."""
    fresh = root.parent / "fresh"
    (fresh / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, folder in (("VOCtrainval.tar", "VOCdevkit"), ("benchmark.tgz", "benchmark_RELEASE")):
        with tarfile.open(fresh / name, "w:gz" if name.endswith("gz") else "w") as archive:
            archive.add(root / folder, folder)
    assert len(dataset(fresh, train_list=root.parent / "list.txt").prepare(0)["train"]) == 3


@pytest.mark.parametrize("beside", [False, True])
def test_archives_are_unpacked(root, beside):
    before = {split: index.hash for split, index in dataset(root).prepare(0).items()}
    fresh = root.parent / "fresh" / "pascal"
    place = fresh.parent if beside else fresh
    place.mkdir(parents=True)
    for name, folder in (("VOCtrainval.tar", "VOCdevkit"), ("benchmark.tgz", "benchmark_RELEASE")):
        with tarfile.open(place / name, "w:gz" if name.endswith("gz") else "w") as archive:
            archive.add(root / folder, folder)
    data = dataset(fresh, train_list=root.parent / "list.txt")
    assert {split: index.hash for split, index in data.prepare(0).items()} == before


# ---------------------------------------------------------------------------------------------------------------------
# Counts


def test_whole_data_must_give_the_papers_counts(root, monkeypatch):
    monkeypatch.setattr(pascal, "sbd_train_noval", lambda: [BOTH, SBD_ONLY])
    with data_error("train: the folds list", "4208 / 3726 / 2752 / 4510", "check_counts=false"):
        dataset(root, train_list=None, check_counts=True).prepare(0)
    with data_error("not prepared"):
        dataset(root, train_list=None).split("train")
    unchecked = dataset(root, train_list=None, check_counts=False)
    assert len(unchecked.prepare(0)["train"]) == 3
    # An index that was made unchecked is not taken for a checked one.
    with data_error("check_counts=false"):
        dataset(root, train_list=None, check_counts=True).prepare(0)


def test_counts_that_fit(root, monkeypatch):
    monkeypatch.setattr(pascal, "sbd_train_noval", lambda: [BOTH, SBD_ONLY])
    # None of these labels reaches 2,048 pixels.
    monkeypatch.setattr(pascal, "PAPERS", dict.fromkeys(PAPERS, (0, 0, 0, 0)))
    assert len(dataset(root, train_list=None, check_counts=True).prepare(0)["train"]) == 3


@pytest.mark.long
def test_real_counts(tmp_path):
    """Every number of pascal_counts.json, by class and fold, from the real labels and lists."""
    lists, masks = real_data("voc2012_part", "ImageSets"), real_data("voc2012_masks.tar")
    expected = json.loads(real_data("..", "reference", "pascal_counts.json").read_text())
    root = tmp_path / "pascal"
    shutil.copytree(lists, root / "ImageSets")
    (root / "JPEGImages").mkdir()
    with tarfile.open(masks) as archive:
        for member in archive:
            # Most photographs are not here: flat ones of the right size stand for them.
            label = Image.open(archive.extractfile(member))
            image = Image.new("L", label.size)
            image.save(root / "JPEGImages" / member.name.split("/")[1].replace(".png", ".jpg"))
    shutil.copy(masks, root / "voc2012_masks.tar")
    data = dataset(root, train_list=None, min_area=2048, check_counts=True)
    indexes = data.prepare(2)
    assert [len(indexes[split]) for split in ("train", "val")] == [5953, 1449]
    assert {key: counts_of_folds(indexes[key[0]], data.options, *key, "contiguous") for key in PAPERS} == PAPERS
    for fold in range(4):
        for split, key, filtered in (("train", "filtered", True), ("train", "unfiltered", False), ("val", "val", True)):
            options = dataset(root, min_area=2048, filter_novel=filtered).options
            sampler = Fold(options, indexes[split].class_names, fold).sampler(indexes[split], split, 0, 0, "in_order")
            listed = indexes[split].areas[sampler.queries] >= 2048
            wanted = expected[key][f"fold{fold}"]
            assert len(sampler) == wanted["images"]
            assert {str(c): int(listed[:, c].sum()) for c in sampler.classes} == wanted["per_class"]
    label = read_label(root / "SegmentationClassAug" / f"{VAL[0]}.png")
    assert set(np.unique(label)) >= {0, 255}
    of_hsnet = dataset(root, train_list="hsnet", min_area=2048, allow_missing=True, filter_novel=False)
    train = of_hsnet.prepare(2)["train"]
    assert len(train) == 5682  # the labels of SBD's val are not there
    for fold, (in_val, in_train) in enumerate(zip((346, 451, 725, 346), (6399, 5754, 4506, 6489))):
        of_fold = Fold(of_hsnet.options, train.class_names, fold)
        assert len(of_fold.sampler(indexes["val"], "val", 5, 0, "pairs")) == in_val
        assert len(of_fold.sampler(train, "train", 1, 0, "shuffled_epochs")) == in_train
