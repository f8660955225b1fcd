"""Imported VGG16 and ResNet-101 checkpoints, COCO's and 5-shot SVF ones among them, compute what the methods say.

There are no recorded values of these; the other side is tests/official_written_out.py.
"""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fss_svf import Episode, load_official
from tests import official_written_out as written_out
from tests.golden import episodes, fill
from tests.methods.test_golden import name_here

GOLDEN = Path(__file__).parents[1] / "golden"
VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_STARTS = (0, 7, 14, 24, 34)
KEYS = {"baseline": "aspp", "pfenet": "pfenet", "bam": "bam"}
LOGITS, LOSS, GRADIENT = 2e-5, 1e-5, 2e-3
# Gradients of the first K-shot layer are what differences of shots leave over, 1e-6 and below: the written-out method
# itself, in float32, is off by 3e-3.
KSHOT = 1e-2
RATIOS = (1.0, 0.5, 0.25, 0.125)
ABSOLUTE = (60, 30, 15, 8)


def official_keys(method, backbone, shot, dataset):
    """Names and shapes of the official state dict: a golden case's, with another backbone under its head."""
    golden = json.loads((GOLDEN / f"{KEYS[method]}_r50_{shot if method == 'bam' else 1}shot.keys.json").read_text())
    keys = {k: list(shape) for k, shape in golden}
    head = {k: shape for k, shape in keys.items() if not re.match(r"layer\dp?\.", k)}
    stages = vgg_stages() if backbone == "vgg16" else resnet101_stages(keys)
    if backbone == "vgg16":  # 256 + 512 mid-level channels for 512 + 1024, 512 deep ones for 2048
        for key in ("down_query.0.weight", "down_supp.0.weight"):
            head[key][1] = 768
        for key, shape in head.items():
            if key.startswith("learner_base.0."):
                head[key] = [{512: 128, 2048: 512}.get(n, n) for n in shape]
        if method == "bam":
            head["learner_base.1.0.weight"][1] = 1024
    if method == "bam":
        if dataset == "coco":
            for leaf in ("weight", "bias"):
                head[f"learner_base.1.4.{leaf}"][0] = 61
        stages |= {re.sub(r"^(layer\d)", r"\1p", k): shape for k, shape in stages.items()}
    return list({**stages, **head}.items())


def vgg_stages():
    """PFENet's: slices of torchvision's vgg16_bn, numbered from 0 in each."""
    shapes, channels = {}, 3
    for stage, (count, width) in enumerate(zip(written_out.VGG_CONVS, VGG_WIDTHS)):
        for i in range(count):
            shapes[f"layer{stage}.{3 * i}.weight"] = [width, channels, 3, 3]
            shapes[f"layer{stage}.{3 * i}.bias"] = [width]
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"layer{stage}.{3 * i + 1}.{leaf}"] = [width]
            shapes[f"layer{stage}.{3 * i + 1}.num_batches_tracked"] = []
            channels = width
    return shapes


def resnet101_stages(resnet50):
    """A ResNet-50's, with 23 blocks in layer3 for its 6."""
    shapes = {k: shape for k, shape in resnet50.items() if re.match(r"layer\d\.", k)}
    last = {k.removeprefix("layer3.5."): shape for k, shape in shapes.items() if k.startswith("layer3.5.")}
    return shapes | {f"layer3.{block}.{k}": shape for block in range(6, 23) for k, shape in last.items()}


def checkpoint(tmp_path, method, backbone, shot, dataset, svf):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(official_keys(method, backbone, shot, dataset)))
    state = fill.official_state_dict(path, KEYS[method])
    return decomposed(state) if svf else state


def decomposed(state):
    """Factored at a rank that is a multiple of 4, as official, and trained a little in layers 2 to 4."""
    out = dict(state)
    for key in [k for k, v in state.items() if re.match(r"layer\d\.", k) and v.ndim == 4]:
        matrix, layer = out.pop(key).double().flatten(1), key.removesuffix(".weight")
        if matrix.shape[0] < matrix.shape[1]:
            # Of a broad matrix this is the SVD too, and much faster.
            squares, u = torch.linalg.eigh(matrix @ matrix.T)
            s, u = squares.sqrt().flip(0), u.flip(1)
            vh = (u.T @ matrix) / s[:, None]
        else:
            u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        r = len(s) // 4 * 4
        if layer.startswith(("layer2", "layer3", "layer4")):
            s = s * (1 + 0.1 * torch.cos(torch.arange(len(s))))
        out[f"{layer}.conv_U.weight"] = u[:, :r, None, None].float()
        out[f"{layer}.conv_V.weight"] = vh[:r].reshape(r, *state[key].shape[1:]).float()
        out[f"{layer}.vector_S"] = s[:r].view(1, -1, 1, 1).float()
        if f"{layer}.bias" in out:
            out[f"{layer}.conv_U.bias"] = out.pop(f"{layer}.bias")
    return out


@pytest.mark.parametrize(
    ("method", "backbone", "shot", "dataset", "svf", "bins"),
    [
        pytest.param("pfenet", "vgg16", 1, "pascal", False, ABSOLUTE, marks=pytest.mark.numeric),
        pytest.param("bam", "vgg16", 1, "coco", False, None, marks=pytest.mark.numeric),
        # What they have in common with those above, once more.
        pytest.param("baseline", "vgg16", 5, "pascal", True, None, marks=[pytest.mark.numeric, pytest.mark.long]),
        pytest.param("baseline", "vgg16", 1, "pascal", False, None, marks=pytest.mark.long),
        pytest.param("pfenet", "resnet101", 2, "coco", False, RATIOS, marks=pytest.mark.long),
        pytest.param("pfenet", "vgg16", 2, "coco", True, RATIOS, marks=pytest.mark.long),
        pytest.param("bam", "vgg16", 5, "pascal", True, None, marks=pytest.mark.long),
        pytest.param("bam", "resnet101", 1, "coco", False, None, marks=pytest.mark.long),
    ],
)
def test_equals_the_method_written_out(tmp_path, one_thread, method, backbone, shot, dataset, svf, bins):
    state = checkpoint(tmp_path, method, backbone, shot, dataset, svf)
    options = {"bins": bins} if bins else {}
    model = load_official(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}},
        method,
        backbone,
        shot=shot,
        dataset=dataset,
        tuning="svf" if svf else "frozen",
        **options,
    )
    size = 129 if (backbone, bins) == ("vgg16", RATIOS) else 73  # an eighth of the feature is a cell
    query, support, support_masks, query_mask, base_mask, base_class = episodes.episode(2, shot, size, seed=5)
    e = Episode(query, support, support_masks, query_mask, base_mask=base_mask, base_class=base_class + 1)
    exact = Episode(*(x.double() for x in (query, support, support_masks)), query_mask, base_mask=base_mask,
                    base_class=base_class + 1)  # fmt: skip
    s = {k: v.double() for k, v in state.items()}
    stage = written_out.vgg_stage
    if backbone == "resnet101":
        stage = written_out.resnet_stage("pfenet" if method == "bam" else "torchvision")
    run = partial(getattr(written_out, method), s, stage, exact, bins)

    with torch.no_grad():
        prediction, (outputs, _) = model(e), run()
    found = {"logits": prediction.logits, **prediction.aux}
    assert found.keys() == outputs.keys()
    for name, theirs in outputs.items():
        assert float((found[name] - theirs).abs().max()) <= LOGITS * float(theirs.abs().max()), name

    trained = [k for k in s if not re.match(r"layer\dp?\.|learner_base|.*num_batches", k)]
    trained += [k for k in s if re.match(r"layer[234]\..*vector_S", k)]
    for key in trained:
        s[key].requires_grad_()
    _, theirs = run(training=True) if method == "bam" else run()
    sum(theirs).backward()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    losses = model.losses(model(e), e)
    assert [float(x.detach()) for x in losses.values()] == pytest.approx([float(x.detach()) for x in theirs], rel=LOSS)
    sum(losses.values()).backward()
    ours = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    norms = {in_our_model(k, backbone): float(s[k].grad.norm()) for k in trained if s[k].grad is not None}
    assert ours.keys() == norms.keys()
    for name, norm in norms.items():
        assert ours[name] == pytest.approx(norm, rel=KSHOT if name.startswith("kshot.0.") else GRADIENT), name


def in_our_model(official, backbone):
    """A parameter's name here, where a VGG's numbers go on through the stages."""
    stage = re.match(r"layer(\d)\.(\d+)\.(.+)", official)
    if stage and backbone == "vgg16":
        official = f"layer{stage[1]}.{int(stage[2]) + VGG_STARTS[int(stage[1])]}.{stage[3]}"
    return name_here(official)
