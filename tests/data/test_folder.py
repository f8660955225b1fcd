"""A person's own folder: endings, lists, folds by name, and what can be wrong with it."""

import json
import logging

import numpy as np
import pytest
from PIL import Image, ImageOps

from fss_svf.config import from_mapping
from fss_svf.data.fold import Fold
from fss_svf.data.folder import Folder, FolderOptions
from fss_svf.data.prepare import images_of_classes
from fss_svf.errors import ConfigError
from tests.one_line import data_error

CLASSES = ("cat", "dog", "cow", "sheep", "hen")
ENDINGS = (".jpg", ".JPG", ".png", ".jpeg")


def mask_of(i):
    """Class i % 5 + 1, and every sixth image the next class too."""
    mask = np.zeros((30, 44), np.uint8)
    mask[3:20, 4:24] = i % 5 + 1
    mask[0] = 255
    if i % 6 == 0:
        mask[22:28, 30:40] = (i + 1) % 5 + 1
    return mask


def tree(tmp_path):
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n\n")
    for i in range(30):
        Image.fromarray(np.full((30, 44, 3), i, np.uint8)).save(root / "images" / f"photo {i:02d}.x{ENDINGS[i % 4]}")
        Image.fromarray(mask_of(i)).save(root / "masks" / f"photo {i:02d}.x.png")
    (root / "images" / "Thumbs.db").write_text("not an image")
    return root


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path)


def options(root, **changes):
    values = {
        "root": str(root), "prepared": str(root / "prepared"), "class_partition": "contiguous", "min_area": 20,
        "filter_novel": True, "too_few_images": "error", "support_annotation": "mask", "images": "images",
        "masks": "masks", "classes": "classes.txt", "instances": None, "train_list": None, "val_list": None,
        "allow_missing": False, "folds": None,
    }  # fmt: skip
    return from_mapping(FolderOptions, {**values, **changes}, "dataset")


def folder(root, **changes):
    return Folder(options(root, **changes))


def test_images_of_any_ending_go_with_their_masks(root):
    data = folder(root)
    index = data.prepare(0)["train"]
    assert index.class_names == CLASSES
    assert index.names.tolist() == [f"photo {i:02d}.x" for i in range(30)]
    for split in ("train", "val"):
        opened = data.split(split)
        assert opened.index.hash == index.hash
        for i in range(30):
            image, label = opened.pair(i)
            assert np.array_equal(label, mask_of(i))
            assert np.abs(image.astype(int) - i).max() <= 3


def test_filter_keeps_the_folds_images_apart(root):
    data = folder(root)
    index = data.prepare(0)["train"]
    train = Fold(data.options, index.class_names, 0).sampler(index, "train", 1, 0, "shuffled_epochs")
    test = Fold(data.options, index.class_names, 0).sampler(index, "val", 1, 0, "in_order")
    assert test.classes == (1, 2)
    used = {image for n in range(100) for image in (train[n].query, *train[n].supports)}
    tested = {image for n in range(100) for image in (test[n].query, *test[n].supports)}
    assert used
    assert tested
    assert not used & tested


def test_folds_by_name(root):
    data = folder(root, folds=[["hen", "cat"], ["cow"]])
    index = data.prepare(0)["train"]
    assert data.options.num_folds == 2
    assert [data.options.novel(index.class_names, fold) for fold in (0, 1)] == [(1, 5), (3,)]
    # dog and sheep are in no fold: base classes of both.
    assert Fold(data.options, index.class_names, 1).sampler(index, "train", 1, 0, "in_order").classes == (1, 2, 4, 5)


def test_fewer_classes_than_folds(root):
    (root / "classes.txt").write_text("cat\ndog\ncow\n")
    for i in range(30):
        Image.fromarray(np.where(mask_of(i) == 255, 255, np.minimum(mask_of(i), 3))).save(
            root / "masks" / f"photo {i:02d}.x.png"
        )
    data = folder(root)
    index = data.prepare(0)["train"]
    assert [data.options.novel(index.class_names, fold) for fold in range(4)] == [(1,), (2,), (3,), ()]
    with data_error("fold=3", "no class is novel", "3"):
        Fold(data.options, index.class_names, 3).sampler(index, "train", 1, 0, "in_order")


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([["cat"], ["cat"]], "dataset.folds: expected every class in one fold at most, got 'cat'"),
        ([["cat"], []], "dataset.folds: expected at least one class in every fold"),
        ([], "dataset.folds: expected at least one class in every fold"),
        ("cat", "dataset.folds: expected a list"),
    ],
)
def test_folds_that_make_no_sense(root, folds, message):
    with pytest.raises(ConfigError) as caught:
        options(root, folds=folds)
    assert str(caught.value).startswith(message)


def test_fold_of_an_unknown_class(root):
    with pytest.raises(ConfigError, match=r"dataset.folds: no class 'shep' \(did you mean 'sheep'\?\)"):
        options(root, folds=[["shep"]]).novel(CLASSES, 0)


def test_lists(root):
    (root / "train.txt").write_text("\n".join(f"photo {i:02d}.x" for i in range(20)) + "\n")
    (root / "test.txt").write_text("photo 25.x\nphoto 20.x\n")
    indexes = folder(root, train_list="train.txt", val_list="test.txt").prepare(0)
    assert len(indexes["train"]) == 20
    assert indexes["val"].names.tolist() == ["photo 25.x", "photo 20.x"]
    (root / "test.txt").write_text("photo 25.x\nphoto 99.x\n")
    with data_error("1 of 2 names", "photo 99.x", "allow_missing"):
        folder(root, train_list="train.txt", val_list="test.txt").prepare(0)


def test_missing_mask(root):
    (root / "masks" / "photo 07.x.png").unlink()
    with data_error("1 of 30 names", root / "masks" / "photo 07.x.png", "allow_missing=true"):
        folder(root).prepare(0)
    index = folder(root, allow_missing=True).prepare(0)["train"]
    with data_error("not prepared"):  # a part is not taken for the whole
        folder(root).split("train")
    assert len(index) == 29
    assert "photo 07.x" not in index.names


@pytest.mark.parametrize("key", ["images", "masks"])
def test_missing_folder(root, key):
    with data_error(root / "elsewhere", f"dataset.{key}"):
        folder(root, **{key: "elsewhere"}).prepare(0)


def test_missing_root(tmp_path):
    with data_error(tmp_path / "gone", "dataset.root"):
        folder(tmp_path / "gone").prepare(0)


def test_two_images_of_one_name(root):
    Image.new("RGB", (44, 30)).save(root / "images" / "photo 00.x.png")
    with data_error("photo 00.x.jpg", "photo 00.x.png", "rename one"):
        folder(root).prepare(0)


def test_no_image(root):
    for path in (root / "images").iterdir():
        path.unlink()
    with data_error(root / "images", "no image"):
        folder(root).prepare(0)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no "), ("", "0 classes"), ("cat\ndog\ncat\n", "cat twice"), ("a\n" * 2, "a twice")]
)
def test_class_names(root, content, words):
    path = root / "classes.txt"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with data_error(path, words):
        folder(root).prepare(0)


def test_class_beyond_the_names(root):
    (root / "classes.txt").write_text("cat\ndog\n")
    with data_error("photo 02.x.png: has class 3", "1..2"):
        folder(root).prepare(0)


def test_mask_of_another_size(root):
    Image.fromarray(mask_of(0).T.copy()).save(root / "masks" / "photo 03.x.png")
    with data_error("photo 03.x.png", "label of 30 x 44", "image of 44 x 30"):
        folder(root).prepare(0)


def test_instances_in_place_of_masks(root):
    """COCO's format; folds by name work as with masks, and boxes are known."""
    for path in (root / "masks").iterdir():
        path.unlink()
    images, annotations = [], []
    for i in range(8):
        Image.new("RGB", (44, 30)).save(root / "images" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 30, "width": 44})
        outline = [4, 3, 24, 3, 24, 20, 4, 20]
        annotations.append({"image_id": i, "category_id": 7 + i % 2, "segmentation": [outline], "iscrowd": 0})
    categories = [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "mine.json").write_text(json.dumps(content))
    data = folder(root, instances="mine.json", folds=[["dog"]])
    index = data.prepare(0)["train"]
    assert index.class_names == ("cat", "dog")
    assert len(index) == 8
    split = data.split("val")
    assert np.count_nonzero(split.label(1) == 2) == index.areas[1, 2] > 300
    assert split.index.boxes_of(1, 2).tolist() == [[3, 4, 20, 24]]
    assert Fold(data.options, index.class_names, 0).sampler(index, "val", 1, 0, "in_order").classes == (2,)
    with pytest.raises(ConfigError, match="instances: expected null with lists"):
        options(root, instances="mine.json", train_list="train.txt")
    with data_error(root / "other.json"):
        folder(root, instances="other.json").prepare(0)


def test_lists_of_one_name_have_indexes_of_their_own(root):
    for folder_name, names in (("a", [0, 1, 2]), ("b", [7, 8])):
        (root / folder_name).mkdir()
        (root / folder_name / "list.txt").write_text("".join(f"photo {i:02d}.x.JPG\n" for i in names))
    data = folder(root, train_list="a/list.txt", val_list="b/list.txt")
    data.prepare(0)
    assert len(data.split("train").index) == 3
    assert len(data.split("val").index) == 2
    # A list that was edited since is not taken for the one that was prepared.
    (root / "a" / "list.txt").write_text("photo 05.x\n")
    with data_error("not prepared"):
        data.split("train")


def test_image_that_went_away_since(root):
    data = folder(root)
    data.prepare(0)
    (root / "images" / "photo 03.x.jpeg").unlink()
    with data_error(root / "images", "photo 03.x", "prepare"):
        data.split("train").pair(3)


def test_text_of_other_editors(root):
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8-sig")
    assert folder(root).prepare(0)["train"].class_names == CLASSES
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-16")
    with data_error(root / "classes.txt", "UTF-8"):
        folder(root).prepare(0)


# Images and masks as people have them


def turned(root, orientation, numbers, shape=(30, 44)):
    """Images `numbers` stored such that EXIF turns them into pictures of random values of this shape; the pictures."""
    shown = {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in numbers:
        for path in (root / "images").glob(f"photo {i:02d}.x.*"):
            path.unlink()
        values = np.random.default_rng(i).integers(0, 255, shape[::-1] if orientation >= 5 else shape, np.uint8)
        path = root / "images" / f"photo {i:02d}.x.png"
        Image.fromarray(values).save(path, exif=exif)
        with Image.open(path) as image:
            shown[i] = np.asarray(ImageOps.exif_transpose(image))
        assert shown[i].shape == shape
    return shown


@pytest.mark.parametrize("orientation", [3, 6])
def test_images_are_turned_as_their_masks_were_drawn(root, caplog, orientation):
    shown = turned(root, orientation, [3, 4])
    caplog.set_level(logging.INFO)
    data = folder(root)
    data.prepare(0)
    assert "2 images are turned by EXIF" in caplog.text
    assert "photo 03.x.png" in caplog.text
    assert ("fit unturned too" in caplog.text) == (orientation == 3)
    for i, image in shown.items():
        assert np.array_equal(data.split("train").pair(i)[0][..., 0], image)


def test_masks_drawn_on_images_as_stored(root, caplog):
    turned(root, 6, [3])
    # Two whose masks were drawn on the image as it is stored.
    turned(root, 8, [7, 8], (44, 30))
    caplog.set_level(logging.INFO)
    data = folder(root)
    data.prepare(0)
    assert "2 images, first" in caplog.text
    assert "their masks fit unturned" in caplog.text
    with Image.open(root / "images" / "photo 07.x.png") as image:
        assert np.array_equal(data.split("train").pair(7)[0][..., 0], np.asarray(image))
    # One that could be either makes it unclear: others of this folder are drawn unturned.
    turned(root, 3, [5])
    with data_error("photo 05.x.png", "turned and unturned", "photo 07.x.png", "remove the EXIF orientation"):
        data.prepare(0)


def test_links_to_files_that_are_not_there(root):
    for folder_name, name in (("masks", "photo 07.x.png"), ("images", "photo 08.x.jpg")):
        path = root / folder_name / name
        path.unlink()
        path.symlink_to("../.git/annex/objects/x")
    with data_error("2 of 30 names", "photo 07.x.png (a link to ../.git/annex/objects/x", "git annex get"):
        folder(root).prepare(0)
    assert len(folder(root, allow_missing=True).prepare(0)["train"]) == 28


def test_masks_that_are_no_png(root):
    for path in (root / "masks").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with data_error("30 of 30 names", "masks are PNG files, photo 00.x.jpg is not"):
        folder(root).prepare(0)


def test_accents_capitals_and_hidden_files(root):
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    Image.new("RGB", (44, 30)).save(root / "images" / f"{composed}.JPEG")
    Image.fromarray(mask_of(1)).save(root / "masks" / f"{decomposed}.PNG")
    (root / "classes.txt").write_text("\n".join([*CLASSES[:4], composed]), encoding="utf-8")
    for hidden in ("._a.jpg", ".DS_Store", ".b.png"):
        (root / "images" / hidden).write_bytes(b"")
        (root / "masks" / hidden).write_bytes(b"")
    (root / "list.txt").write_text(f"{decomposed}.JPEG\n", encoding="utf-8")
    data = folder(root, val_list="list.txt", folds=[[decomposed]])
    assert len(data.prepare(0)["train"]) == 31
    val = data.split("val")
    assert val.index.names.tolist() == [composed]
    assert np.array_equal(val.pair(0)[1], mask_of(1))
    assert data.options.novel(val.index.class_names, 0) == (5,)
    Image.new("RGB", (44, 30)).save(root / "images" / f"{decomposed}.png")
    with data_error(f"both {decomposed}.png and {composed}.JPEG", "rename one"):
        folder(root).prepare(0)


def test_images_in_subfolders(root, caplog):
    below = root / "images" / "holiday"
    below.mkdir()
    (root / "images" / "photo 03.x.jpeg").rename(below / "photo 03.x.jpeg")
    folder(root).prepare(0)
    assert "29 images; the 1 images in holiday/ are not read" in caplog.text
    assert f"1 masks have no image and are not used, first {root / 'masks' / 'photo 03.x.png'}" in caplog.text
    for path in (root / "images").glob("*.*"):
        path.rename(below / path.name)
    with data_error(root / "images", "no image", "the 30 images in holiday/"):
        folder(root).prepare(0)


def test_annotations_in_cocos_format_are_of_the_image_as_stored(root, caplog):
    turned(root, 3, [1])
    image = Image.open(root / "images" / "photo 01.x.png")
    image.save(root / "images" / "1.jpg", quality=100, exif=image.getexif())
    entry = {"image_id": 1, "category_id": 1, "segmentation": [[4, 3, 24, 3, 24, 20, 4, 20]], "iscrowd": 0}
    images = [{"id": 1, "file_name": "1.jpg", "height": 30, "width": 44}]
    content = {"images": images, "annotations": [entry], "categories": [{"id": 1, "name": "cat"}]}
    (root / "mine.json").write_text(json.dumps(content))
    data = folder(root, instances="mine.json")
    data.prepare(0)
    assert "1 images, first" in caplog.text
    assert "save them upright" in caplog.text
    assert np.abs(data.split("val").pair(0)[0][..., 0].astype(int) - np.asarray(image)).max() < 4


def test_a_damaged_or_unclear_image_is_found_by_prepare(root):
    path = root / "images" / "photo 01.x.JPG"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with data_error(path, "cannot be read"):
        folder(root).prepare(0)
    path.unlink()
    Image.fromarray(np.full((30, 44), 99, np.float32)).save(path.with_suffix(".tif"))
    with data_error(path.with_suffix(".tif"), "float values"):
        folder(root).prepare(0)


def test_masks_of_0_and_255(root, caplog):
    index = folder(root).prepare(0)["train"]
    # Of each class six images show 340 pixels of it, and one 60.
    assert images_of_classes(index, 20, range(1, 6)) == "cat 7, dog 7, cow 7, sheep 7, hen 7"
    assert images_of_classes(index, 100, range(1, 6)) == ", ".join(f"{name} 6 (and 1 below 100 px)" for name in CLASSES)
    for i in (2, 9):
        Image.fromarray((mask_of(i) > 0).astype(np.uint8) * 255).save(root / "masks" / f"photo {i:02d}.x.png")
    assert "255" not in caplog.text
    folder(root).prepare(0)
    assert "photo 02.x.png and 1 other masks have only 0 and 255" in caplog.text
    for i in range(30):
        Image.fromarray((mask_of(i) > 0).astype(np.uint8) * 255).save(root / "masks" / f"photo {i:02d}.x.png")
    with data_error(root / "masks", "no mask has a class", "255 is ignored", "1 for 'cat'"):
        folder(root).prepare(0)
    with data_error("not prepared"):
        folder(root).split("train")
