"""Class names of one meaning: leaks under another name, and one thing twice in a list."""

import json
from pathlib import Path

import pytest

from fss_svf.config import from_mapping
from fss_svf.data.folder import FolderOptions
from fss_svf.data.synonyms import SYNONYMS, listed_twice, same_things, spelling
from fss_svf.data.voc import VOC_CLASSES
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.model import refuse_leak
from tests.data.test_folder import options, tree

COCO = """
person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,
bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,
sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,
bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,
toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,
teddy bear,hair drier,toothbrush
""".replace("\n", "").split(",")


def test_every_class_of_pascal_is_one_of_coco():
    """As PASCAL's and COCO's pages say: each VOC class has one COCO class."""
    found = same_things(COCO, VOC_CLASSES)
    assert [name for _, name in found] == list(VOC_CLASSES)
    renamed = {name: coco for coco, name in found if coco != name}
    assert renamed == {
        "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle",
        "pottedplant": "potted plant", "sofa": "couch", "tvmonitor": "tv",
    }  # fmt: skip


@pytest.mark.parametrize("names", [COCO, VOC_CLASSES])
def test_no_shipped_list_holds_a_thing_twice(names):
    assert listed_twice(names) == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Cat", "cat"), ("CAT ", "cat"), ("dining_table", "Dining Table"), ("potted-plant", "pottedplant"),
        ("TV/monitor", "television"), ("television_receiver.n.01", "tvmonitor"), ("airplane.n.01", "aeroplane"),
        ("sofa, couch, lounge", "couch"), ("airplane;aeroplane;plane", "airplane"), ("automobile", "car"),
        ("car_(automobile)", "car"), ("Ko\u0308nig", "KÖNIG"), ("hairdryer", "hair drier"), ("cellphone", "mobile phone"),
    ],
)  # fmt: skip
def test_one_thing(a, b):
    assert same_things([a], [b]) == [(a, b)]
    assert same_things([b], [a]) == [(b, a)]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("airliner", "airplane"), ("plane", "airplane"), ("bike", "bicycle"), ("bike", "motorbike"),
        ("mouse", "computer mouse"), ("cats", "cat"), ("part 1-12", "part 11-2"), ("obj_1_1", "obj_11"), ("A+", "A"),
        ("table", "dining table"), ("+", "-"),
    ],
)  # fmt: skip
def test_two_things(a, b):
    assert same_things([a], [b]) == []


def test_the_table_is_of_words_of_one_meaning_each():
    words = [spelling(word) for group in SYNONYMS for word in group]
    assert len(set(words)) == len(words) - 1  # tv/monitor is a spelling of tvmonitor


def test_a_users_words_join_the_shipped_ones():
    assert same_things(["Screen"], ["tvmonitor"], [["tv", "screen"]]) == [("Screen", "tvmonitor")]
    assert same_things(["x"], ["z"], [["x", "y"], ["y", "z"]]) == [("x", "z")]
    assert same_things(["couch", "airplane"], ["settee"], [["sofa", "settee"]]) == [("couch", "settee")]


def test_a_leak_is_refused_by_any_name():
    trained = {"dataset": "coco", "fold": 0, "classes": ["tv", "couch", "person"]}
    refuse_leak(trained, ["cat", "dog"], "w.pt")
    with pytest.raises(
        WeightsError, match=r"^w\.pt: .*has seen couch \(sofa here\), tv \(tvmonitor here\), novel here"
    ):
        refuse_leak(trained, ["sofa", "tvmonitor", "cat"], "w.pt", VOC_CLASSES)
    # A dataset that has both may test one: its list is warned of by itself.
    refuse_leak(trained, ["sofa"], "w.pt", ["sofa", "couch"])
    with pytest.raises(WeightsError, match="has seen couch, novel here"):
        refuse_leak(trained, ["couch"], "w.pt", ["sofa", "couch"])
    with pytest.raises(WeightsError, match=r"person \(human here\)"):
        refuse_leak(trained, ["human"], "w.pt", ["human"], (("human", "person"),))


@pytest.mark.parametrize("synonyms", [[["cat"]], [[]], [["cat", ""]], ["cat"], "cat"])
def test_synonyms_that_say_nothing(tmp_path, synonyms):
    with pytest.raises(ConfigError, match=r"^dataset\.synonyms"):
        options(tmp_path, synonyms=synonyms)


def test_a_config_of_before_there_were_synonyms(tmp_path):
    values = {key: value for key, value in vars(options(tmp_path)).items() if key != "synonyms"}
    assert from_mapping(FolderOptions, {**values, "root": str(tmp_path), "prepared": str(tmp_path)}).synonyms == ()


def test_from_the_command_line(fss, tmp_path):
    """A training on one folder, tested on the same images by other names; the user's own words count too."""
    root, other = tree(tmp_path / "a"), tree(tmp_path / "b")
    (root / "classes.txt").write_text("sofa\nhen\ncow\nsheep\ncat\n")
    (other / "classes.txt").write_text("Couch\nchicken\ncow\nsheep\nCow\n")
    small = ("dataset.min_area=20", "workers=0", "dataset.filter_novel=false")
    for at in (root, other):
        status, _, err = fss("prepare", "dataset=folder", f"dataset.root={at}", *small)
        assert (status, "the classes 'cow' and 'Cow' have the same meaning" in err) == (0, at == other)
    status, _, err = fss(
        "train", "experiment=toy", "backbone=tiny", "dataset=folder", f"dataset.root={root}", *small,
        "dataset.folds=[[sheep],[cat]]", "recipe.size=65", "recipe.batch_size=2", "recipe.max_steps=1", "validate.every=1",
        "validate.episodes=2", "backbone.width=8", "method.width=8", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert status == 0, err
    evaluate = ("evaluate", f"checkpoint={tmp_path}/run", "dataset=folder", f"dataset.root={other}", *small, "pictures=0",
                "protocol.episodes=4", "protocol.never_drawn=leave_out")  # fmt: skip
    status, _, err = fss(*evaluate, "dataset.folds=[[Couch]]", "fold=0")
    assert status == 1
    assert "has seen sofa (Couch here), novel here" in err.strip().splitlines()[-1]
    status, _, err = fss(*evaluate, "dataset.folds=[[chicken]]", "fold=0", "dataset.synonyms=[[hen,chicken]]")
    assert status == 1
    assert "has seen hen (chicken here), novel here" in err.strip().splitlines()[-1]
    status, _, err = fss(*evaluate, "dataset.folds=[[chicken]]", "fold=0", f"hydra.run.dir={tmp_path}/result")
    assert status == 0, err
    assert list(json.loads(Path(tmp_path / "result" / "result.json").read_text())["per_class"]) == ["chicken"]
