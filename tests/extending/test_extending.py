"""The examples of docs/extending.md: they are the page's, they keep what is promised of their kind, its commands work."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from fss_svf.backbones.stages import STAGES
from fss_svf.conf_files import conf_dir
from fss_svf.config import Protocol, from_mapping, to_mapping
from fss_svf.data.cache import cached
from fss_svf.errors import DataError
from fss_svf.model import build_backbone
from fss_svf.registry import BACKBONES, DATASETS, TUNINGS, Choice
from tests.cli import test_config
from tests.evaluation import test_protocols
from tests.examples import DOCS, EXAMPLES, blocks, commands_of, plugins_apart, registered
from tests.methods import test_methods
from tests.svf import test_tunings

PAGE = (DOCS / "extending.md").read_text()
PARTS = {"class_folders": DATASETS, "resnet34": BACKBONES, "first_conv": TUNINGS}
PROTOCOL = "hsnet_original"


@pytest.fixture(scope="module", autouse=True)
def parts():
    with (
        registered(DATASETS, "class_folders"),
        registered(BACKBONES, "resnet34"),
        registered(TUNINGS, "first_conv"),
    ):
        yield


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """conf/ with the YAMLs of the page."""
    folder = tmp_path / "conf"
    shutil.copytree(conf_dir(), folder)
    for name, registry in PARTS.items():
        shutil.copy(EXAMPLES / f"{name}.yaml", folder / registry.kind)
    shutil.copy(EXAMPLES / f"{PROTOCOL}.yaml", folder / "protocol")
    monkeypatch.setattr(test_config, "CONF", folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Eight classes of seven pictures, each a white square in its mask."""
    root = tmp_path / "mine"
    random = np.random.default_rng(0)
    for name in "abcdefgh":
        (root / name).mkdir(parents=True)
        for i in range(7):
            image = random.integers(0, 120, (60, 80, 3), dtype=np.uint8)
            mask = np.zeros((60, 80), np.uint8)
            mask[10:40, 5 + i : 40 + i] = 255
            image[mask > 0] += 30 * np.array([ord(name) % 2, ord(name) // 2 % 2, ord(name) // 4 % 2], np.uint8)
            Image.fromarray(image).save(root / name / f"{i}.jpg")
            Image.fromarray(mask).save(root / name / f"{i}.png")
    return root


def test_the_page_shows_the_files_in_full():
    assert blocks(PAGE, "python") == [(EXAMPLES / f"{name}.py").read_text() for name in PARTS]
    assert blocks(PAGE, "yaml") == [(EXAMPLES / f"{name}.yaml").read_text() for name in (*PARTS, PROTOCOL)]


@pytest.mark.parametrize("name", PARTS)
def test_each_yaml_holds_its_options(name, conf):
    registry = PARTS[name]
    keys = test_config.keys_of(conf / registry.kind / f"{name}.yaml") - {"name"}
    assert keys == {f.name for f in dataclasses.fields(registry.entry(name).options)}
    assert test_config.compose("train", f"{registry.kind}={name}")


# ---------------------------------------------------------------------------------------------------------------------
# The dataset


def dataset(root):
    return DATASETS.build(test_config.compose("train", "dataset=class_folders", f"dataset.root={root}").dataset)


def test_labels_are_the_numbers_of_the_folders(conf, pictures):
    data = dataset(pictures)
    index = data.prepare(0)["train"]
    assert index.class_names == tuple("abcdefgh")
    assert (index.areas[index.names.tolist().index("c/2")] == [0, 0, 0, 30 * 35, 0, 0, 0, 0, 0]).all()
    for split in (data.split("val"), cached(data.split("val"), 0.01)):
        image, label = split.pair(index.names.tolist().index("c/2"))
        assert image.shape == (60, 80, 3)
        assert sorted(np.unique(label)) == [0, 3]
        assert (label[10:40, 7:42] == 3).all()


def test_an_edited_mask_is_read_again(conf, pictures):
    before = dataset(pictures).prepare(0)["val"]
    Image.fromarray(np.full((60, 80), 255, np.uint8)).save(pictures / "a" / "0.png")
    after = dataset(pictures).prepare(0)["val"]
    assert (before.areas[0, 1], after.areas[0, 1]) == (30 * 35, 60 * 80)


def test_an_empty_root_is_one_line(conf, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: 0 folders with masks, expected 1 to 254; set dataset.root"):
        dataset(tmp_path / "empty").prepare(0)


# ---------------------------------------------------------------------------------------------------------------------
# The backbone


def test_stages_channels_and_stride():
    backbone, _ = build_backbone(Choice("resnet34", BACKBONES.entry("resnet34").options()))
    with torch.no_grad():
        outputs = backbone.eval()(torch.randn(1, 3, 65, 65), STAGES)
    assert (
        [outputs[s].shape[1] for s in STAGES] == [64, 64, 128, 256, 512] == [backbone.taps[s].channels for s in STAGES]
    )
    assert [outputs[s].shape[-1] for s in STAGES[2:]] == [9, 9, 9]


def test_weights_of_torchvision_and_of_a_run(tmp_path):
    options = BACKBONES.entry("resnet34").options
    theirs = torchvision.models.resnet34()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    backbone, report = BACKBONES.build(Choice("resnet34", options(str(tmp_path / "weights.pth"))))
    assert torch.equal(backbone.layer3[5].conv2.weight, theirs.layer3[5].conv2.weight)
    assert report.ignored == ()
    run = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    torch.save({"model": run}, tmp_path / "last.pt")
    again, _ = BACKBONES.build(Choice("resnet34", options(str(tmp_path / "last.pt"))))
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("method", ["baseline", "bam"])
def test_encoding_apart_equals_forward(method, monkeypatch):
    options = BACKBONES.entry("resnet34").options()
    monkeypatch.setitem(test_methods.BACKBONES, "resnet34", lambda: BACKBONES.build(Choice("resnet34", options))[0])
    test_methods.test_encoding_apart_equals_forward(method, "resnet34", 5)


@pytest.mark.parametrize("tuning", ["layers", "bias", "adapter", "lora"])
def test_tunings_of_stages_start_unchanged(tuning):
    test_tunings.test_every_backbone_starts_unchanged_and_gets_gradients("resnet34", tuning)


def test_svf_trains_one_value_a_channel():
    # Of two 3x3 convolutions a block and one 1x1 a stage: 4, 6 and 3 blocks of 128, 256 and 512 channels.
    expected = 128 * 8 + 64 + 256 * 12 + 128 + 512 * 6 + 256
    assert test_tunings.count("resnet34", "svf") == expected


# ---------------------------------------------------------------------------------------------------------------------
# The tuning


@pytest.fixture
def announced(monkeypatch):
    options = TUNINGS.entry("first_conv").options()
    shipped = test_tunings.shipped_tuning
    monkeypatch.setattr(
        test_tunings, "shipped_tuning", lambda name: Choice(name, options) if name == "first_conv" else shipped(name)
    )
    monkeypatch.setitem(test_tunings.ANNOUNCED, "first_conv", r"layer[234]\.0\.conv1\.weight")


def test_it_keeps_the_promises_of_every_tuning(announced):
    test_tunings.test_training_starts_at_the_pretrained_network("first_conv")
    test_tunings.test_a_seed_gives_the_head_the_same_start_in_every_tuning("first_conv")
    test_tunings.test_exactly_what_is_announced_trains("first_conv")
    test_tunings.test_a_checkpoint_restores_it("first_conv")
    test_tunings.test_a_copy_is_one_of_its_own("first_conv")
    test_tunings.test_the_base_branch_of_bam_stays_bit_for_bit("first_conv")
    test_tunings.test_other_stages_are_left_alone("first_conv")


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "vgg16", "vgg16_plain"])
def test_it_trains_on_every_backbone(announced, backbone):
    test_tunings.test_every_backbone_starts_unchanged_and_gets_gradients(backbone, "first_conv")


# ---------------------------------------------------------------------------------------------------------------------
# The protocol


def test_it_changes_the_label_alone(conf, monkeypatch):
    found = test_config.compose("train", f"protocol={PROTOCOL}").protocol
    values = to_mapping(test_protocols.shipped("hsnet"))
    assert found == from_mapping(Protocol, {**values, "name": PROTOCOL, "label": "original"})
    assert found.hash() != test_protocols.shipped("hsnet").hash()
    # Against the plain version of every shipped protocol.
    monkeypatch.setitem(test_protocols.FACTS, PROTOCOL, {**test_protocols.FACTS["hsnet"], "label": "original"})
    monkeypatch.setattr(test_protocols, "shipped", lambda name: found)
    for shape in test_protocols.SIZES:
        test_protocols.check_input_and_counts(PROTOCOL, shape, 400)


# ---------------------------------------------------------------------------------------------------------------------
# All together


@pytest.fixture
def mine(tmp_path):
    """The folder `parts` of the page, on Python's path; the examples are these plugins alone."""
    folder = tmp_path / "parts"
    for source, target in copies():
        (tmp_path / target).mkdir(parents=True, exist_ok=True)
        shutil.copy(DOCS.parent / source, tmp_path / target)
    with plugins_apart(*PARTS) as patch:
        for name, registry in PARTS.items():
            registry._entries.pop(name)
        patch.syspath_prepend(folder)
        yield folder


def copies():
    return [line.split()[1:] for line in PAGE.splitlines() if line.startswith("cp ")]


def test_the_commands_of_the_page(fss, mine, pictures, tmp_path):
    """Each as it stands there, with fewer and smaller steps, and without a download."""
    small = ["recipe.size=65", "recipe.batch_size=2", "workers=0", "validate.episodes=2"]
    smaller = {
        "prepare": ["workers=0"],
        "info": [],
        "train": ["backbone.weights=null", "recipe.max_steps=2", "method.width=16", *small],
        "evaluate": ["protocol.size=64", "protocol.episodes=10", "workers=0", "pictures=0"],
        "report": [],
    }
    for verb, command in commands_of(PAGE, smaller):
        status, out, err = fss(*command)
        assert status == 0, (command, err)
        if verb == "info":
            assert "ready, 56 images of train, 56 images of val" in " ".join(out.split())
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {result["protocol"]["name"] for result in results} == {PROTOCOL}
    assert {(r["dataset"], r["backbone"], r["tuning"]) for r in results} == {
        ("class_folders", "resnet34", "first_conv")
    }
    assert "class_folders, resnet34" in out


def test_the_page_copies_each_example():
    for source, folder in copies():
        name = source.split("/")[-1].split(".")[0]
        group = PARTS[name].kind if name in PARTS else "protocol"
        assert folder == ("parts/" if source.endswith(".py") else f"parts/conf/{group}/")
        assert (DOCS.parent / source).is_file()
    assert len(copies()) == 7
