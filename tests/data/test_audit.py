"""prepare check=true: the audit finds what was put into a dataset."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fss_svf.data.audit import contact_sheet
from fss_svf.data.synonyms import other_names
from tests.data.test_folder import folder

CLASSES = ("sofa", "couch", "hen")


def photo(i, height=120, width=160):
    """Soft blobs of light, different in each photograph."""
    coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for i in range(20):
        photo(i).save(images / f"p{i:02d}.jpg", quality=95)
        mask = np.zeros((120, 160), np.uint8)
        mask[20:70, 30:90] = i % 3 + 1
        Image.fromarray(mask).save(masks / f"p{i:02d}.png")
    # Copies of training images among those of val: the file itself, and half as large in another quality.
    shutil.copy(images / "p01.jpg", images / "p11.jpg")
    photo(2, 60, 80).save(images / "p12.jpg", quality=60)
    Image.fromarray(np.full((60, 80), 1, np.uint8)).save(masks / "p12.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    photo(3).save(images / "p03.jpg", exif=exif)
    Image.fromarray(np.zeros((120, 160), np.uint8)).save(masks / "p04.png")
    tiny = np.zeros((120, 160), np.uint8)
    tiny[5:8, 5:10] = 3
    Image.fromarray(tiny).save(masks / "p15.png")
    for split, numbers in (("train", range(10)), ("val", range(10, 20))):
        (tmp_path / f"{split}.txt").write_text("\n".join(f"p{i:02d}" for i in numbers))
    return tmp_path


def test_the_audit_finds_what_is_doubtful(root, fss):
    keys = (f"dataset.root={root}", "dataset.train_list=train.txt", "dataset.val_list=val.txt", "dataset.min_area=20")
    status, out, err = fss("prepare", "dataset=folder", *keys, "check=true", "workers=0")
    assert status == 0, err
    report = json.loads((root / "prepared" / "audit.json").read_text())
    assert report["same_file"] == [["train/p01", "val/p11"]]
    assert report["alike"] == [["train/p02", "val/p12"]]
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["images"], val["images"]) == (10, 10)
    assert train["without_object"] == ["p04"]
    assert train["exif_orientation"] == ["p03"]
    assert val["tiny_masks"] == [["p15", "hen", 15]]
    assert val["height"] == {"least": 60, "median": 120, "most": 120}
    # By the list of the masks above.
    assert {name: of["images"] for name, of in train["classes"].items()} == {"sofa": 4, "couch": 2, "hen": 3}
    assert val["classes"]["hen"] == {"images": 3, "below_min_area": 1}
    assert report["classes_listed_twice"] == [["sofa", "couch"]]
    for words in ("train/p01 = val/p11", "1 of them in train and val", "p15 hen 15", "p04", "sofa = couch"):
        assert words in out
    with Image.open(root / "prepared" / "audit.png") as sheet:
        assert sheet.size == (1242, 902)


def test_without_check_nothing_is_written(root, fss):
    assert fss("prepare", "dataset=folder", f"dataset.root={root}", "dataset.min_area=20", "workers=0")[0] == 0
    assert not (root / "prepared" / "audit.json").exists()


def test_the_sheet_has_each_images_mask_in_its_colour(root):
    data = folder(root)
    data.prepare(0)
    sheet = contact_sheet(data.split("val"), seed=0)
    grey = (sheet.max(axis=2) - sheet.min(axis=2)) < 3
    # 19 images with an object, each with about a sixth of its 200 x 150 pixels in colour.
    assert 19 * 30_000 * 0.08 < np.count_nonzero(~grey) < 19 * 30_000 * 0.3


def test_other_names():
    assert other_names(["tv", "dog", "Fire-Hydrant"])["tv"][:2] == ["tvmonitor", "tv/monitor"]
    assert other_names(["dog", "motor cycle"]) == {"motor cycle": ["motorbike"]}
