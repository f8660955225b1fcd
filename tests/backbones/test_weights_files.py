"""backbone.weights of other codebases: prefixes, nests, objects beside the weights, and files that are no weights."""

import argparse
import io
import pathlib
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fss_svf.backbones.weights import LoadReport, load_weights
from fss_svf.errors import WeightsError

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


class Net(nn.Module):
    """Of torchvision's names, but small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Sequential(OrderedDict(conv1=nn.Conv2d(4, 4, 1), bn1=nn.BatchNorm2d(4))))
        self.fc = nn.Linear(4, 10)


def under(prefix: str, net: nn.Module, head: bool = True) -> dict:
    return {prefix + k: v for k, v in net.state_dict().items() if head or not k.startswith("fc.")}


def load(folder: Path, content: object) -> tuple[nn.Module, LoadReport]:
    torch.save(content, folder / "w.pth")
    net = Net()
    return net, load_weights(net, str(folder / "w.pth"), "resnet18")


def same_body(net: nn.Module, reference: nn.Module) -> bool:
    theirs = reference.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in net.state_dict().items() if not k.startswith("fc."))


# What a file of each codebase looks like, around the state dict of `a`; `b` is another network in it.
CODEBASES = {
    "plain": lambda a, b: under("", a),
    "MoCo": lambda a, b: {"epoch": 9, "state_dict": {
        **under("module.encoder_q.", a), **under("module.encoder_k.", b), "module.queue": torch.ones(4, 9)}},
    "MoCo, the key encoder first": lambda a, b: {"state_dict": {
        **under("module.encoder_k.", b), **under("module.encoder_q.", a)}},
    "MoCo v3": lambda a, b: {"state_dict": {
        **under("module.momentum_encoder.", b), **under("module.base_encoder.", a)}},
    "DINO": lambda a, b: {"student": under("module.backbone.", b, False), "teacher": under("backbone.", a, False)},
    "DINO, one of them": lambda a, b: {"student": under("module.backbone.", a, False), "epoch": 3},
    "BYOL": lambda a, b: {"state_dict": {**under("online_network.", a), **under("target_network.", b)}},
    "an average beside": lambda a, b: {"state_dict": under("", a), "state_dict_ema": under("module.", b)},
    "torchvision's training": lambda a, b: {"model": under("", a), "model_ema": under("module.", b), "epoch": 1},
    "Lightning": lambda a, b: {"state_dict": under("model.", a), "pytorch-lightning_version": "2.4.0"},
    "torch.compile": lambda a, b: {"model": under("_orig_mod.", a)},
    "torch.compile of a part": lambda a, b: {
        k.replace("layer1.", "layer1._orig_mod."): v for k, v in under("module.", a).items()},
    "mmseg": lambda a, b: {"meta": {"CLASSES": ("a",)}, "state_dict": {
        **under("backbone.", a, False), "decode_head.conv_seg.weight": torch.ones(2, 4, 1, 1)}},
    "DenseCL": lambda a, b: {"state_dict": {
        **under("backbone.", a, False), **under("encoder_q.0.", a, False), **under("encoder_k.0.", b, False)}},
    "SwAV": lambda a, b: {"state_dict": {
        **under("module.", a, False), "module.prototypes.weight": torch.ones(9, 4)}},
    "VISSL": lambda a, b: {"classy_state_dict": {"base_model": {"model": {
        "trunk": under("_feature_blocks.", a, False), "heads": {}}}}},
    "DETR": lambda a, b: {"model": {k: v for k, v in under("backbone.0.body.", a, False).items()
                                    if not k.endswith("num_batches_tracked")}},
    "semseg's numbers": lambda a, b: {"state_dict": {
        k.replace("module.conv1", "module.layer0.0").replace("module.bn1", "module.layer0.1"): v
        for k, v in under("module.", a).items()}},
    "a linear probe": lambda a, b: {"state_dict": {**under("", a, False), "fc.weight": torch.ones(7, 4)}},
    "half precision": lambda a, b: under("", a.half()),
    "a NumPy number": lambda a, b: {"state_dict": under("", a), "best": np.float64(0.6), "miou": np.float32(1)},
    "a NumPy array": lambda a, b: {"state_dict": under("", a), "history": np.arange(4), "names": np.array(["a"])},
    "a Namespace": lambda a, b: {"state_dict": under("", a), "args": argparse.Namespace(
        lr=0.1, out=pathlib.PurePosixPath("a/b"), dtype=torch.float16)},
    "a whole model": lambda a, b: a,
    "a whole model in a dict": lambda a, b: {"model": nn.Sequential(OrderedDict(backbone=a)), "epoch": 3},
}  # fmt: skip


@pytest.mark.parametrize("codebase", CODEBASES)
def test_a_file_of_each_codebase_is_read(tmp_path: Path, codebase: str) -> None:
    a, b = Net(), Net()
    net, report = load(tmp_path, CODEBASES[codebase](a, b))
    assert same_body(net, a.float())
    assert not same_body(net, b)
    assert report.loaded >= 10


def test_the_report_says_which_network_of_two(tmp_path: Path) -> None:
    a, b = Net(), Net()
    _, report = load(tmp_path, CODEBASES["DINO"](a, b))
    assert (report.prefix, report.others) == ("teacher.backbone.", ("student.module.backbone.",))
    assert "under 'teacher.backbone.' (not 'student.module.backbone.')" in str(report)


def test_two_networks_of_equal_standing_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    a, b = Net(), Net()
    with pytest.raises(WeightsError, match=r"2 networks in it fit, under 'left\.', 'right\.'; save the one"):
        load(tmp_path, {**under("left.", a), **under("right.", b)})
    net, _ = load(tmp_path, {**under("left.", a), **under("right.", a)})
    assert same_body(net, a)


def test_classes_that_are_not_installed_stand_beside_the_weights(tmp_path: Path) -> None:
    module = types.ModuleType("elsewhere")
    exec("class AttributeDict(dict): pass\nclass Config:\n    def __init__(self): self.a = 1", module.__dict__)
    for kind in (module.AttributeDict, module.Config):
        kind.__module__ = "elsewhere"
    sys.modules["elsewhere"] = module
    a = Net()
    beside = {"hyper_parameters": module.AttributeDict(lr=1), "config": module.Config(), "kind": module.Config}
    for legacy in (False, True):
        torch.save(
            {"state_dict": under("", a), **beside}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy
        )
        del sys.modules["elsewhere"]
        net = Net()
        load_weights(net, str(tmp_path / "w.pth"), "resnet18")
        assert same_body(net, a)
        sys.modules["elsewhere"] = module
    del sys.modules["elsewhere"]


class Evil:
    def __init__(self, call: tuple) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


def test_nothing_of_a_file_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import os

    trace = tmp_path / "trace"
    calls = [(print, ("executed",)), (os.mkdir, (str(trace),)), (eval, (f"open({str(trace)!r}, 'w')",)),
             (Path.touch, (trace,)), (getattr, (Net, "x"))]  # fmt: skip
    for call in calls:
        with pytest.raises(WeightsError, match="not a readable checkpoint"):
            load(tmp_path, {"a": Evil(call)})
    a = Net()
    try:
        net, _ = load(tmp_path, {"a": Evil((print, ("executed",))), "state_dict": under("", a)})
        assert same_body(net, a)
    except WeightsError:
        pass
    assert "executed" not in capsys.readouterr().out
    assert not trace.exists()


def truncated(content: object) -> bytes:
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()[: len(written.getvalue()) // 2]


def legacy(content: object) -> bytes:
    written = io.BytesIO()
    torch.save(content, written, _use_new_zipfile_serialization=False)
    return written.getvalue()


def zipped(**files: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return written.getvalue()


def scripted() -> bytes:
    written = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), written)
    return written.getvalue()


NO_WEIGHTS = {
    "an empty file": (lambda: b"", "an empty file"),
    "a web page": (lambda: b"\n<!DOCTYPE html><html><body>Sign in</body>", "a web page"),
    "an error of a store": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "a web page"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
    "text": (lambda: b'{"error": "Repository not found"}', 'a text file that begins with \'{"error"'),
    "half a zip": (lambda: truncated(Net().state_dict()), "half a download"),
    "half of the older format": (lambda: legacy(Net().state_dict())[:900], "half a download"),
    "gzip": (lambda: b"\x1f\x8b\x08rest", "unpack it first"),
    "another zip": (lambda: zipped(**{"readme.txt": b"a"}), "a zip archive of readme.txt; unpack it"),
    "TorchScript": (scripted, "a TorchScript archive; save its tensors"),
    "HDF5": (lambda: b"\x89HDF\r\n", "an HDF5 file"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_file_that_holds_no_weights_says_what_it_is(tmp_path: Path, kind: str) -> None:
    make, words = NO_WEIGHTS[kind]
    path = tmp_path / "w.pth"
    path.write_bytes(make())
    with pytest.raises(WeightsError) as caught:
        load_weights(Net(), str(path), "resnet18")
    message = str(caught.value)
    assert words in message
    assert message.count("w.pth: not a readable checkpoint (") == 1
    assert "\n" not in message
    assert ("half a download" in message) == (words == "half a download")


def test_safetensors(tmp_path: Path) -> None:
    a = Net()
    for name in ("w.safetensors", "w.pth"):  # by content too
        save_file({k: v.clone() for k, v in under("backbone.", a).items()}, tmp_path / name)
        net = Net()
        load_weights(net, str(tmp_path / name), "resnet18")
        assert same_body(net, a)
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="half a download"):
        load_weights(Net(), str(tmp_path / "w.safetensors"), "resnet18")


def test_tensors_that_are_no_weights_are_named(tmp_path: Path) -> None:
    a = Net()
    key = "layer1.0.conv1.weight"
    for value, words in (
        (torch.full((4, 4, 1, 1), float("nan")), "holds NaN or infinity"),
        (torch.ones(4, 4, 1, 1, dtype=torch.int8), "holds torch.int8"),
        (torch.ones(5, 4, 1, 1), r"shapes differ: layer1.0.conv1.weight \(5, 4, 1, 1\) for \(4, 4, 1, 1\)"),
    ):
        with pytest.raises(WeightsError, match=rf"{key}.*{words}" if "shapes" not in words else words):
            load(tmp_path, {**under("module.", a), f"module.{key}": value})


def test_other_names_are_shown_as_they_stand_in_the_file(tmp_path: Path) -> None:
    other = {"model": {"stem.conv.kernel": torch.ones(2), "blocks.0.norm.g": torch.ones(2)}}
    with pytest.raises(WeightsError, match=r"the first are model\.stem\.conv\.kernel, model\.blocks\.0\.norm\.g"):
        load(tmp_path, other)
    almost = under("module.encoder_q.", Net())
    del almost["module.encoder_q.bn1.bias"]
    with pytest.raises(WeightsError, match=r"missing bn1\.bias\)"):
        load(tmp_path, almost)
