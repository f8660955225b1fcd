"""Downloads with binary masks: their trees, the classes of their images, and their usual faults."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fss_svf.conf_files import values
from fss_svf.config import from_mapping
from fss_svf.data import binary_layouts
from fss_svf.data.binary_layouts import FSS_SPLITS, LAYOUTS, isic_classes
from fss_svf.data.fold import Fold
from fss_svf.data.loading import Episodes
from fss_svf.errors import DataError
from fss_svf.registry import DATASETS
from tests.one_line import data_error

SIZE = 24, 30


def mask_of(i):
    mask = np.zeros(SIZE, bool)
    mask[2 + i % 5 : 14, 3 : 12 + i % 7] = True
    return mask


def save_image(path, i):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 3 * i % 256, np.uint8)).save(path)


def save_mask(path, mask, kind="L"):
    """A mask with soft borders in grey, colours, a palette or one bit: the object is what is 128 or lighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.where(mask, 255, 0).astype(np.uint8)
    grey[0, :2] = (127, 90)
    if kind == "P":
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette([0, 0, 0, 250, 240, 230])
    else:
        image = Image.fromarray(mask if kind == "1" else grey).convert(kind)
    image.save(path)


KINDS = ("L", "RGB", "P", "1")


def fss1000(root, classes=None):
    names = [n for split in FSS_SPLITS.values() for n in split[:3]] if classes is None else classes
    for c, name in enumerate(names):
        for i in range(1, 11):
            save_image(root / name / f"{i}.{'JPG' if i == 4 else 'jpg'}", i)
            save_mask(root / name / f"{i}.{'PNG' if i == 5 else 'png'}", mask_of(i + c), KINDS[i % 4])


def isic2018(root, names, folder=""):
    for i, name in enumerate(names):
        save_image(root / "ISIC2018_Task1-2_Training_Input" / folder.format(i % 3 + 1) / f"{name}.jpg", i)
        save_mask(root / "ISIC2018_Task1_Training_GroundTruth" / f"{name}_segmentation.png", mask_of(i), KINDS[i % 4])
    (root / "ISIC2018_Task1-2_Training_Input" / "LICENSE.txt").write_text("no image")


def chest_xray(root):
    for i in range(6):
        save_image(root / "CXR_png" / f"CHNCXR_{i:04d}_0.png", i)
        if i != 5:
            save_mask(root / "masks" / f"CHNCXR_{i:04d}_0_mask.png", mask_of(i), KINDS[i % 4])


def deepglobe(root):
    for c in range(1, 7):
        for i in range(3):
            save_image(root / str(c) / "test" / "origin" / f"{100 + i}_{c}.jpg", i)
            save_mask(root / str(c) / "test" / "groundtruth" / f"{100 + i}_{c}.png", mask_of(i + c), KINDS[i % 4])


SUIM_CLASSES = LAYOUTS["suim"].classes


def suim(root):
    """Image i shows the classes i % 7 and (i + 1) % 7, which overlap in a row; the masks of others are empty or missing."""
    for i in range(14):
        save_image(root / "images" / f"d_r_{i}_.jpg", i)
        for c in range(7):
            mask = np.zeros(SIZE, bool)
            if c == i % 7:
                mask[:10] = True
            if c == (i + 1) % 7:
                mask[9:20] = True
            if mask.any() or i % 2:
                path = root / "masks" / SUIM_CLASSES[c] / f"d_r_{i}_.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)


def dataset(name, root, **changes):
    entry = DATASETS.entry(name)
    options = {**values(f"dataset/{name}", {"root": str(root), "prepared": str(root / "prepared"), **changes})}
    del options["name"]
    return entry.build(from_mapping(entry.options, options, "dataset"))


@pytest.fixture
def few_isic(monkeypatch):
    """Twelve of ISIC's images, of each class some."""
    classes = isic_classes()
    names = [name for c in (1, 2, 3) for name in [n for n, of in classes.items() if of == c][:4]]
    few = {name: classes[name] for name in names}
    layout = replace(LAYOUTS["isic2018"], class_of=lambda: few)
    monkeypatch.setitem(binary_layouts.LAYOUTS, "isic2018", layout)
    return few


def test_the_lists_are_the_papers():
    assert [len(names) for names in FSS_SPLITS.values()] == [520, 240, 240]
    assert len({name for names in FSS_SPLITS.values() for name in names}) == 1000
    assert np.bincount(list(isic_classes().values())).tolist() == [0, 1867, 519, 208]


@pytest.mark.parametrize("below", ["", "FSS-1000", "fewshot_data/fewshot_data"])
def test_fss1000(tmp_path, below):
    fss1000(tmp_path / below)
    data = dataset("fss1000", tmp_path, allow_missing=True)
    indexes = data.prepare(0)
    names = indexes["val"].names.tolist()
    # Classes in the order of the list, images in that of their names as text.
    assert names[:3] == [f"{FSS_SPLITS['test'][0]}/{i}" for i in (1, 10, 2)]
    assert {name.split("/")[0] for name in names} == set(FSS_SPLITS["test"][:3])
    assert len(indexes["train"]) == len(indexes["val"]) == 30
    fold = Fold(data.options, indexes["val"].class_names, 0)
    assert (len(fold.base), len(fold.novel)) == (520, 240)
    assert fold.names(fold.novel) == list(FSS_SPLITS["test"])
    few = replace(data.options, too_few_images="skip")
    split = data.split("val")
    sampler = Fold(few, split.index.class_names, 0).sampler(split.index, "val", 5, 0, "in_order")
    assert len(sampler) == 30
    for number in range(30):
        spec = sampler[number]
        for image, (_, mask) in zip(
            (spec.query, *spec.supports), [Episodes(split, "mask").query(spec), *Episodes(split, "mask").supports(spec)]
        ):
            name, i = names[image].split("/")
            position = 6 + FSS_SPLITS["test"].index(name)  # by the order in which the tree was written
            assert np.array_equal(mask, mask_of(int(i) + position).astype(np.uint8))
            assert split.index.class_name(spec.class_id) == name
    validation = dataset("fss1000", tmp_path, allow_missing=True, tested="val")
    assert {n.split("/")[0] for n in validation.prepare(0)["val"].names} == set(FSS_SPLITS["val"][:3])


def test_missing_classes_of_fss1000_are_named(tmp_path):
    fss1000(tmp_path)
    first = tmp_path / FSS_SPLITS["train"][3]
    with data_error("517 files are missing", first, "dataset.allow_missing=true"):
        dataset("fss1000", tmp_path).prepare(0)


@pytest.mark.parametrize("folder", ["", "{}"])
def test_isic2018(tmp_path, few_isic, folder):
    isic2018(tmp_path, few_isic, folder)
    data = dataset("isic2018", tmp_path)
    index = data.prepare(0)["val"]
    assert (index.areas > 0).sum(axis=0).tolist() == [0, 4, 4, 4]
    split = data.split("val")
    for number, name in enumerate(index.names.tolist()):
        label = np.where(mask_of(list(few_isic).index(name)), few_isic[name], 0)
        assert np.array_equal(split.label(number), label)
    with data_error("no train split"):
        data.split("train")
    with data_error("all classes of this dataset are tested"):
        Fold(data.options, index.class_names, 0).sampler(index, "train", 1, 0, "random")


def test_isic2018_knows_its_images(tmp_path, few_isic):
    isic2018(tmp_path, few_isic)
    name = next(iter(few_isic))
    image = tmp_path / "ISIC2018_Task1-2_Training_Input" / f"{name}.jpg"
    image.rename(tmp_path / "away.jpg")
    with data_error("1 files are missing", image):
        dataset("isic2018", tmp_path).prepare(0)
    assert len(dataset("isic2018", tmp_path, allow_missing=True).prepare(0)["val"]) == 11
    (tmp_path / "away.jpg").rename(image)
    save_image(image.parent / "ISIC_9999999.jpg", 1)
    with data_error("ISIC_9999999", "not among the 12 images"):
        dataset("isic2018", tmp_path).prepare(0)


def test_chest_xray(tmp_path, caplog):
    chest_xray(tmp_path)
    save_mask(tmp_path / "masks" / "MCUCXR_0001_0.png", mask_of(0))  # as in another download of these masks
    with caplog.at_level("INFO"):
        index = dataset("chest_xray", tmp_path).prepare(0)["val"]
    assert index.names.tolist() == [f"CHNCXR_{i:04d}_0" for i in range(5)]
    assert "2 files are not used" in caplog.text
    (tmp_path / "CXR_png" / "CHNCXR_0002_0.png").unlink()
    with data_error("1 files are missing", "CHNCXR_0002_0.png"):
        dataset("chest_xray", tmp_path).prepare(0)


def test_deepglobe(tmp_path):
    deepglobe(tmp_path / "Deepglobe")
    data = dataset("deepglobe", tmp_path)
    index = data.prepare(0)["val"]
    assert index.names.tolist()[:4] == ["1/100_1", "1/101_1", "1/102_1", "2/100_2"]
    assert (index.areas > 0).sum(axis=0).tolist() == [0, *[3] * 6]
    assert np.array_equal(data.split("val").label(4) == 2, mask_of(3))
    (tmp_path / "Deepglobe" / "3" / "test" / "groundtruth" / "101_3.png").unlink()
    with data_error("1 files are missing", "groundtruth/101_3.png"):
        data.prepare(0)


def test_suim(tmp_path):
    suim(tmp_path)
    data = dataset("suim", tmp_path)
    index = data.prepare(0)["val"]
    assert index.class_names == SUIM_CLASSES
    assert (index.areas > 0).sum(axis=0).tolist() == [0, *[4] * 7]
    label = data.split("val").label(index.names.tolist().index("d_r_3_"))
    expected = np.zeros(SIZE, np.uint8)
    expected[:9], expected[9], expected[10:20] = 4, 255, 5
    assert np.array_equal(label, expected)


def test_faults_of_masks_name_the_file(tmp_path):
    deepglobe(tmp_path)
    path, data = tmp_path / "2" / "test" / "groundtruth" / "101_2.png", dataset("deepglobe", tmp_path)
    for broken, words in (
        (Image.new("L", SIZE, 255), "mask of 24 x 30 for an image of 30 x 24, as if"),
        (Image.fromarray(mask_of(1).astype(np.uint8)), "the highest is 1"),
        (Image.new("I;16", SIZE[::-1], 60_000), "more than 8 bits"),
    ):
        broken.save(path)
        with data_error(path, words):
            data.prepare(0)
    path.write_bytes(b"")
    with data_error(path, "empty file"):
        data.prepare(0)


def test_a_mask_of_another_size_is_resized_by_nearest_neighbour(tmp_path, caplog):
    deepglobe(tmp_path)
    small = np.random.default_rng(0).random((17, 41)) < 0.5
    path = tmp_path / "2" / "test" / "groundtruth" / "101_2.png"
    Image.fromarray(small).save(path)
    data = dataset("deepglobe", tmp_path)
    index = data.prepare(0)["val"]
    assert f"1 masks have another size than their image and are resized, first {path}" in caplog.text
    label = data.split("val").label(index.names.tolist().index("2/101_2"))
    assert label.shape == SIZE
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            assert label[y, x] == 2 * small[int(y * 17 / 24 + 1e-9), int(x * 41 / 30 + 1e-9)]


def test_a_mask_without_an_object_is_counted_and_no_episode_uses_it(tmp_path, caplog):
    deepglobe(tmp_path)
    save_mask(tmp_path / "2" / "test" / "groundtruth" / "101_2.png", np.zeros(SIZE, bool), "1")
    data = dataset("deepglobe", tmp_path)
    index = data.prepare(0)["val"]
    assert "1 masks have no object, first 2/101_2" in caplog.text
    sampler = Fold(data.options, index.class_names, 0).sampler(index, "val", 1, 0, "in_order")
    assert index.names.tolist().index("2/101_2") not in sampler.images()


def test_changes_after_prepare_are_noticed(tmp_path):
    suim(tmp_path)
    data = dataset("suim", tmp_path)
    data.prepare(0)
    mask = tmp_path / "masks" / "FV" / "d_r_7_.bmp"
    before = mask.read_bytes()
    Image.new("L", SIZE[::-1], 255).save(mask)
    with data_error(mask, "changed since"):
        data.split("val")
    mask.write_bytes(before)
    data.split("val")
    save_image(tmp_path / "images" / "new.jpg", 1)
    Image.new("L", SIZE[::-1], 255).save(tmp_path / "masks" / "FV" / "new.bmp")
    with data_error("1 images with masks, first new, were added"):
        data.split("val")


def test_masks_of_a_class_that_come_later_are_noticed(tmp_path):
    suim(tmp_path)
    folder, away = tmp_path / "masks" / "WR", tmp_path / "WR"
    folder.rename(away)
    with data_error("1 files are missing", folder):
        dataset("suim", tmp_path).prepare(0)
    data = dataset("suim", tmp_path, allow_missing=True)
    assert not data.prepare(0)["val"].areas[:, 7].any()
    data.split("val")
    away.rename(folder)
    with data_error("masks of some images were added", "prepare"):
        data.split("val")
    assert np.count_nonzero(data.prepare(0)["val"].areas[:, 7]) == 4
    assert np.count_nonzero(data.split("val").index.areas[:, 7]) == 4


@pytest.mark.parametrize("below", ["train_val", "TEST", ""])
def test_suim_of_its_authors_is_not_read(tmp_path, below):
    save_image(tmp_path / below / "images" / "d_r_1_.jpg", 1)
    save_mask(tmp_path / below / "masks" / "d_r_1_.bmp", mask_of(1), "RGB")
    with data_error(tmp_path, "in the form of its authors", "masks/CLASS/"):
        dataset("suim", tmp_path).prepare(0)


def test_no_download(tmp_path):
    for name in LAYOUTS:
        with pytest.raises(DataError, match=r"data/README\.md"):
            dataset(name, tmp_path / "nothing").prepare(0)
        layout = LAYOUTS[name]
        with data_error(tmp_path, layout.images.format(layout.classes[0]), "data/README.md"):
            dataset(name, tmp_path).prepare(0)
