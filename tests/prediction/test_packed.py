"""Packed models: the folder says all that its checkpoint did, and predicts the same to the last bit."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fss_svf
from fss_svf import packed
from fss_svf.checkpoint import load_checkpoint, save_checkpoint
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.packing import pack
from fss_svf.prediction.loading import load_segmenter, model_name
from fss_svf.prediction.segmenter import Segmenter
from tests.cli.test_config import compose
from tests.conftest import TOY, trained
from tests.prediction.test_predict import picture, save, square_mask

ROOT = Path(__file__).parents[2]
LARGEST = 60_000  # bytes of an adapter
NAME = "stand-in"


@pytest.fixture(scope="module")
def run(toy_root, kept_factors, tmp_path_factory):
    """The run folder of two steps of PANet with SVF on EfficientNet-Lite0, at rates that move every singular value."""
    return trained(
        tmp_path_factory.mktemp("packed") / "run",
        *("experiment=quickstart", "tuning=svf", *TOY, f"dataset.root={toy_root}", "recipe.size=65", "workers=0"),
        *("recipe.max_steps=2", "recipe.batch_size=2", "recipe.optimizer.backbone_lr=0.1", "validate.every=2"),
        "validate.episodes=2",
    )


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """The same, packed."""
    return packed_from(run, tmp_path_factory.mktemp("zoo") / NAME)


def packed_from(run, out, **changes):
    card = out.parent / "card.md"
    card.write_text("# stand-in\n\nTwo steps.\n")
    given = {"score": "mIoU 12.3 on fold 0, 1 shot", "licence": "Apache 2.0", "card": card}
    pack(run, out, **{**given, **changes})
    return out


@pytest.fixture
def zoo(folder, monkeypatch):
    """The package has the stand-in, and no other model."""
    monkeypatch.setattr(packed, "ZOO", folder.parent)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)


# The same model


def test_a_packed_model_is_its_checkpoint_to_the_last_bit(run, folder):
    ours, theirs = Segmenter.load(folder, "cpu"), Segmenter.load(run, "cpu")
    for (name, value), other in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert ours.identity == theirs.identity  # what one has learnt, the other may use
    learnt = ours.learn([picture()], [square_mask(1)])
    for image in (picture(1), picture(2)):
        assert np.array_equal(*(model.segment([image], learnt)[0] for model in (ours, theirs)))
    trained = load_checkpoint(run, "train")["model"]
    untouched = fss_svf.build_model("panet", backbone="efficientnet_lite0", tuning="svf").state_dict()
    moved = [(trained[name] - untouched[name]).abs().max() for name in trained if name.endswith(".S")]
    assert min(moved) > 1e-5  # or equality would say nothing


def test_an_adapter_is_small_and_float32(folder):
    path = folder / packed.ADAPTER
    assert path.stat().st_size < LARGEST
    with safe_open(path, "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) == 11_880  # noqa: SIM118 (not a dict)
    assert {value.dtype for value in load_file(path).values()} == {torch.float32}


def test_its_adapter_fits_the_backbone_of_the_library(folder):
    """Anyone's backbone with these weights takes it: nothing of a method is needed."""
    backbone, _ = fss_svf.build_backbone("efficientnet_lite0")
    fss_svf.svf.load_adapter(backbone.body, folder / packed.ADAPTER)
    expected = fss_svf.load_model(folder).backbone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())


def test_its_text_names_no_folder_and_no_file_of_the_machine(run, folder):
    text = (folder / packed.MODEL).read_text()
    assert not re.search(r"(^|\s|['\"])(/|~|[A-Z]:\\)", text)
    assert str(Path.home()) not in text
    content = yaml.safe_load(text)
    kept = load_checkpoint(run, "train")
    assert content["trained_on"] == kept["trained_on"]
    assert content["base"] == kept["base"]
    assert (content["step"], content["selection"]) == (2, "last step")
    assert not set(packed.FOLDERS) & set(content["config"]["dataset"])


# Verbs


def test_predict_by_name_without_a_checkpoint_or_a_network(fss, run, zoo, offline, tmp_path):
    save(tmp_path / "examples/a.png", picture())
    save(tmp_path / "examples/a.mask.png", square_mask())
    save(tmp_path / "q.png", picture(1))
    for out, which in (("a", f"model={NAME}"), ("b", f"checkpoint={run}")):
        status, _, err = fss("predict", which, "support=examples", "query=q.png", f"out={out}")
        assert status == 0, err
    masks = [np.asarray(Image.open(tmp_path / out / "q.png")) for out in ("a", "b")]
    assert np.array_equal(*masks)
    assert 0 < (masks[0] > 0).mean() < 1
    status, _, err = fss("predict", f"model={NAME}", "support=b/support.pt", "query=q.png", "out=c")
    assert status == 0, err


def test_demo_by_name(zoo, offline):
    config = fss_svf.config.from_mapping(fss_svf.config.DemoConfig, compose_demo(f"model={NAME}"))
    assert model_name(config) == NAME
    assert load_segmenter(config).transform.size == 65


def compose_demo(*arguments):
    return fss_svf.config.to_mapping(compose("demo", *arguments))


def test_evaluate_by_name_gives_the_numbers_of_the_checkpoint(fss, toy_root, run, folder, zoo, offline, monkeypatch):
    monkeypatch.setenv("FSS_SVF_DATA", "elsewhere")  # where the dataset was is not in the folder
    few = ("protocol.episodes=12", "protocol.never_drawn=leave_out", "workers=0", "pictures=0")
    results = []
    for which in (f"model={NAME}", f"checkpoint={folder}", f"checkpoint={run}"):
        status, _, err = fss("evaluate", which, *few, f"dataset.root={toy_root}")
        assert status == 0, err
        (path,) = (path for path in Path("outputs").rglob("result.json") if path not in [p for p, _ in results])
        results.append((path, json.loads(path.read_text())))
    assert results[0][0].parts[2] == NAME  # its run folder is called like the model
    paths = [result["checkpoint"].pop("path") for _, result in results]
    assert paths == [NAME, str(folder), str(run)]
    assert results[0][1] == results[1][1] == results[2][1]
    status, _, err = fss("evaluate", f"model={NAME}", *few)
    assert status == 1
    assert "elsewhere/toy" in err


def test_a_fold_that_it_was_trained_on_is_refused(fss, toy_root, zoo):
    status, _, err = fss("evaluate", f"model={NAME}", "fold=1", f"dataset.root={toy_root}")
    assert status == 1
    assert f"fold=1: model={NAME} was trained on fold 0" in err


@pytest.mark.parametrize("verb", ["predict", "demo", "evaluate"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model=stand_in",), ("model=stand_in: unknown (did you mean 'stand-in'?); known: stand-in",)),
        (
            (f"model={NAME}", "checkpoint=c"),
            (f"model={NAME}: checkpoint=", "c is a model too; leave one of the two out"),
        ),
        ((f"model={NAME}", "method=prototype"), ("method", f"model={NAME}")),
    ],
)
def test_a_wrong_name_or_too_much_is_one_line(fss, zoo, verb, arguments, words):
    pytest.importorskip("gradio") if verb == "demo" else None
    status, _, err = fss(verb, *arguments)
    assert status == 1
    (line,) = err.strip().splitlines()
    for word in words:
        assert word in line


def test_models_are_listed_and_their_cards_printed(fss, zoo, monkeypatch, tmp_path):
    status, out, err = fss("models")
    assert (status, err) == (0, "")
    row = [cell.strip() for cell in out.splitlines()[2].strip("|").split("|")]
    size = round((packed.packaged(NAME) / packed.ADAPTER).stat().st_size / 1000)
    data, score = "toy, fold 0, 15 classes", "mIoU 12.3 on fold 0, 1 shot"
    assert row == [NAME, "panet", "efficientnet_lite0", data, str(size), score]
    assert fss("models", f"model={NAME}") == (0, "# stand-in\n\nTwo steps.\n", "")
    status, _, err = fss("models", "model=none")
    assert (status, "known: stand-in" in err) == (1, True)
    monkeypatch.setattr(packed, "ZOO", tmp_path / "nothing")
    assert fss("models")[1] == "no model is packed here; docs/predict.md says how to pack one's own\n"
    with pytest.raises(ConfigError, match="known: none, this package has no model"):
        fss_svf.packaged(NAME)


def test_the_api_takes_the_folder(zoo):
    assert fss_svf.packaged(NAME).name == NAME
    assert type(fss_svf.load_model(fss_svf.packaged(NAME))).__name__ == "PANet"


# What cannot be used


def test_a_damaged_folder_is_one_error(folder, tmp_path):
    there = tmp_path / "copy"
    there.mkdir()
    (there / packed.CARD).write_text("card")
    text, adapter = (folder / packed.MODEL).read_text(), load_file(folder / packed.ADAPTER)
    with safe_open(folder / packed.ADAPTER, "pt") as file:
        metadata = file.metadata()

    def load(model, tensors):
        (there / packed.MODEL).write_text(model)
        save_file(tensors, there / packed.ADAPTER, metadata)
        return Segmenter.load(there, "cpu")

    assert load(text, adapter).identity == Segmenter.load(folder, "cpu").identity
    for model, words in (
        (text.replace("format: fss-svf model 1", "format: fss-svf model 9"), "found 'fss-svf model 9'"),
        ("a: [", "cannot be read"),
        ("- a", "found 'list'"),
        (text.replace("trained_on:", "trained_off:"), "has no trained_on"),
        (text.replace("hash: cdba", "hash: 0000"), "was trained on weights of hash 0000"),
    ):
        assert model != text
        with pytest.raises(WeightsError, match=re.escape(words)):
            load(model, adapter)
    name = next(iter(adapter))
    with pytest.raises(WeightsError, match=re.escape(name)):
        load(text, {key: value for key, value in adapter.items() if key != name})
    # Singular values of another size would make other weights.
    with pytest.raises(WeightsError, match="adapter"):
        load(text, {**adapter, name: adapter[name] * 2})


def test_what_is_no_adapter_is_not_packed(run, folder, tmp_path):
    content = load_checkpoint(run, "train")
    for change, words in (
        ({"base": None}, "checkpoint.weights=tuned"),
        (
            {"model": {**content["model"], "classifier.weight": torch.zeros(1)}},
            "1 tensors of its own (classifier.weight)",
        ),
    ):
        save_checkpoint(tmp_path / "other.pt", {**content, **change})
        with pytest.raises(WeightsError, match=re.escape(words)):
            packed_from(tmp_path / "other.pt", tmp_path / "out")
    for changes, words in (({"card": tmp_path / "none.md"}, "no such file"), ({}, "exists already")):
        with pytest.raises(WeightsError, match=words):
            packed_from(run, folder if not changes else tmp_path / "out", **changes)
    # A weight beside the singular values trained: it is not in the adapter.
    held = dict(content["model"])
    held["backbone.layer0.conv_stem.weight"] = torch.zeros(32, 3, 3, 3)
    base = {**content["base"], "left_out": content["base"]["left_out"] - 1}
    save_checkpoint(tmp_path / "other.pt", {**content, "model": held, "base": base})
    with pytest.raises(WeightsError, match=r"backbone\.layer0\.conv_stem\.weight would not be as in the checkpoint"):
        packed_from(tmp_path / "other.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is shipped


@pytest.mark.parametrize("name", packed.names())
def test_a_shipped_model_is_complete(name):
    folder = packed.packaged(name)
    content = packed.read_model(folder)
    assert content["name"] == name
    assert (folder / packed.ADAPTER).stat().st_size < LARGEST
    assert (folder / packed.CARD).read_text().startswith("# ")
    assert not re.search(r"(^|\s|['\"])(/|~)", (folder / packed.MODEL).read_text())
    state = Segmenter.load(folder, "cpu").model.state_dict()
    scales = torch.cat([value.flatten() for key, value in state.items() if key.endswith("S_scale")])
    assert (scales != 1).float().mean() > 0.3  # it is a trained one; a method may leave stages unread


def test_the_wheel_has_the_models_and_the_configs():
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(ROOT))
    files = {file.distribution_path for file in builder.recurse_included_files()}
    files |= {file.distribution_path for file in builder.recurse_forced_files(builder.config.get_force_include())}
    of_models = {f"fss_svf/zoo/{name}/{file}" for name in packed.names()
                 for file in (packed.ADAPTER, packed.MODEL, packed.CARD)}  # fmt: skip
    assert {"fss_svf/packed.py", "fss_svf/conf/models.yaml", "fss_svf/py.typed", *of_models} <= files
