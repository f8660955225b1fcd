"""The importer on what the golden cases do not have: VGG16, COCO, K shots with SVF, the base learner, what does not fit."""

import json
import re

import pytest
import torch
from torch import nn

from fss_svf import load_official, svf
from fss_svf.backbones.resnet import ResNetOptions, resnet18
from fss_svf.backbones.vgg import VGGOptions, vgg16
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import TrainConfig, from_mapping
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.evaluation.conditions import SELECTED_ON_NOVEL
from fss_svf.methods.bam import BAM, BAMOptions
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.methods.baseline import Baseline, BaselineOptions
from fss_svf.methods.pfenet import PFENet, PFENetOptions
from fss_svf.model import restore_model
from tests.cli.test_cli import one_line
from tests.conftest import TOY
from tests.methods.test_methods import episode

VGG_STARTS = (0, 7, 14, 24, 34)
ASPP = {
    "down_support": "down_supp",
    "merge": "init_merge",
    "aspp.pooled": "ASPP_meta.layer6_0",
    "aspp.pointwise": "ASPP_meta.layer6_1",
    "aspp.dilated.0": "ASPP_meta.layer6_2",
    "aspp.dilated.1": "ASPP_meta.layer6_3",
    "aspp.dilated.2": "ASPP_meta.layer6_4",
    "reduce": "res1_meta",
    "residual.body": "res2_meta",
    "classifier": "cls_meta",
}
OFFICIAL = {
    "baseline": ASPP,
    "bam": {
        **ASPP,
        "kshot": "kshot_rw",
        "base.cls": "learner_base.1",
        **{f"base.ppm.branches.{i}.{j}": f"learner_base.0.features.{i}.{j + 1}" for i in range(4) for j in range(2)},
    },
    "pfenet": {
        "down_support": "down_supp",
        "merge": "init_merge",
        "across": "alpha_conv",
        **{f"within.{i}.body": f"beta_conv.{i}" for i in range(4)},
        "auxiliary": "inner_cls",
        "reduce": "res1",
        "residual.body": "res2",
        "classifier": "cls",
    },
    "base_learner": {f"ppm.branches.{i}.{j}": f"ppm.features.{i}.{j + 1}" for i in range(4) for j in range(2)},
}


def official(model, method, restart=True):
    """The state dict under official names; a VGG's numbers count from 0 in every stage, or go on through the stages."""
    out = {}
    for name, value in model.state_dict().items():
        stage = re.match(r"backbone\.layer(\d)\.(.+)", name)
        if stage:
            number, rest = int(stage[1]), stage[2]
            if rest[0].isdecimal() and "conv" not in rest and "downsample" not in rest and "bn" not in rest and restart:
                first, _, leaf = rest.partition(".")
                rest = f"{int(first) - VGG_STARTS[number]}.{leaf}"
            stem = re.match(r"(conv|bn)(\d)\.(.+)", rest) if number == 0 else None
            if stem:
                rest = f"{3 * int(stem[2]) - 3 + (stem[1] == 'bn')}.{stem[3]}"
            name = f"layer{number}.{rest}"
        else:
            for ours, theirs in OFFICIAL[method].items():
                if name.startswith(f"{ours}."):
                    name = theirs + name.removeprefix(ours)
                    break
        out[name] = value.clone()
    return out


def as_trained(model):
    """As if trained: features neither fade nor resemble each other."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def vgg_bam():
    """BAM on VGG16 for COCO at 5 shots."""
    torch.manual_seed(0)
    backbone = vgg16(VGGOptions())[0].requires_grad_(False)
    return as_trained(BAM(backbone, BAMOptions(width=16, shot=5, base_classes=60)))


def same(ours, theirs, e, bound=0.0):
    with torch.no_grad():
        a, b = ours(e), theirs(e)
    for x, y in [(a.logits, b.logits), *((a.aux[k], b.aux[k]) for k in b.aux)]:
        assert float((x - y).abs().max()) <= bound * float(y.abs().max())


@pytest.mark.parametrize("restart", [True, False])
def test_vgg_and_coco(vgg_bam, restart, tmp_path):
    state = official(vgg_bam, "bam", restart)
    assert ("layer1.0.weight" in state) == restart
    # The official SVF code keeps the base branch's stages beside the meta branch's.
    state |= {re.sub(r"^(layer\d)", r"\1p", k): v for k, v in state.items() if k.startswith("layer")}
    torch.save({"epoch": 9, "state_dict": state}, tmp_path / "best.pth")
    model = load_official(tmp_path / "best.pth", method="bam", backbone="vgg16", shot=5, dataset="coco")
    assert not model.base.stages
    assert not model.training
    same(model, vgg_bam, episode(shot=5, size=33))


def test_vgg_with_svf_at_five_shots(vgg_bam, one_thread):
    """Every weight of the meta branch factored and S changed; the base branch has the original ones."""
    plain = official(vgg_bam, "bam")
    state = {**plain, **{re.sub(r"^(layer\d)", r"\1p", k): v for k, v in plain.items() if k.startswith("layer")}}
    effective = dict(plain)
    for key in [k for k, v in plain.items() if re.match(r"layer\d\.", k) and v.ndim == 4]:
        u, s, vh = torch.linalg.svd(plain[key].flatten(1), full_matrices=False)
        r = len(s) // 4 * 4
        s = s[:r] * (1 + 0.1 * torch.cos(torch.arange(r)) * (key[5] in "234"))
        effective[key] = ((u[:, :r] * s) @ vh[:r]).view(plain[key].shape)
        layer = key.removesuffix(".weight")
        del state[key]
        state[f"{layer}.conv_U.weight"] = u[:, :r, None, None]
        state[f"{layer}.conv_U.bias"] = state.pop(f"{layer}.bias")
        state[f"{layer}.conv_V.weight"] = vh[:r].view(r, *plain[key].shape[1:])
        state[f"{layer}.vector_S"] = s.view(1, r, 1, 1)
    arguments = {"method": "bam", "backbone": "vgg16", "shot": 5, "dataset": "coco"}
    model = load_official(state, tuning="svf", **arguments)
    e = episode(shot=5, size=33)
    meta = load_official(effective, **arguments)
    with torch.no_grad():
        found, base, original = model(e), vgg_bam(e).aux["base"], vgg_bam(e).aux["meta"]
        expected = meta.segment({**meta.encode_query(e.query_image), "base": model.encode_query(e.query_image)["base"]},
                                meta.encode(e)[1], e.size)  # fmt: skip
    assert torch.equal(found.aux["base"], base)
    assert float((found.aux["meta"] - original).abs().max()) > 0.01 * float(original.abs().max())
    for ours, theirs in ((found.logits, expected.logits), (found.aux["meta"], expected.aux["meta"])):
        assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())
    # Singular values of layers 2 to 4 alone train, 3,840 in a VGG16.
    assert sum(p.numel() for p in model.backbone.parameters() if p.requires_grad) == 3840
    with svf.disabled(model.backbone):
        restored = model.backbone.layer4(torch.ones(1, 512, 5, 5))
    assert torch.equal(restored, vgg_bam.backbone.layer4(torch.ones(1, 512, 5, 5)))


@pytest.mark.parametrize("method", ["baseline", "pfenet"])
def test_a_standard_stem(method):
    """Also a leftover kshot_rw in the baseline, and a file of old PyTorch without counters."""
    torch.manual_seed(0)
    backbone = resnet18(ResNetOptions(dilation="pfenet"))[0]
    build = {"baseline": (Baseline, BaselineOptions), "pfenet": (PFENet, PFENetOptions)}[method]
    reference = as_trained(build[0](backbone, build[1](width=16)))
    state = {k: v for k, v in official(reference, method).items() if not k.endswith("num_batches_tracked")}
    if method == "baseline":
        state["kshot_rw.0.weight"] = torch.ones(2, 5, 1, 1)
    model = load_official({f"module.{k}": v for k, v in state.items()}, method, "resnet18", dilation="pfenet")
    same(model, reference, episode(shot=5))


def test_the_base_learner():
    torch.manual_seed(0)
    reference = as_trained(BaseLearner(resnet18(ResNetOptions(dilation="pfenet"))[0], 15))
    state = official(reference, "base_learner")
    state |= {f"encoder.{k[5:]}": v for k, v in state.items() if k.startswith("layer")}
    model = load_official(state, "base_learner", "resnet18")
    image = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(model(image), reference(image))


def test_what_does_not_fit_is_named(vgg_bam):
    state = official(vgg_bam, "bam")

    def refused(match, error=WeightsError, changes=(), **arguments):
        with pytest.raises(error, match=match):
            load_official(
                {**state, **dict(changes)},
                **{"method": "bam", "backbone": "vgg16", "shot": 5, "dataset": "coco", **arguments},
            )

    extra = {"layer5.weight": torch.ones(1), "aux.0.weight": torch.ones(1)}
    refused(r"2 tensors do not belong to an official bam: layer5\.weight, aux\.0\.weight", changes=extra)
    refused(r"shot=1, but .* 5 shots; set shot=5", shot=1)
    refused(r"60 base classes, dataset=pascal has 15 in a fold", dataset="pascal")
    refused(r"tuning=svf, but its backbone is plain; set tuning=frozen", tuning="svf")
    refused(r"does not fit the model: backbone.layer1.0.conv1.weight is missing", backbone="resnet50")
    refused(r"method=prototype: .* official checkpoints", ConfigError, method="prototype")
    factored = {"layer2.0.vector_S": torch.ones(1, 4, 1, 1)}
    refused(r"tuning=frozen, but its backbone is an SVF one; set tuning=svf", changes=factored)
    del state["res1_meta.0.weight"]
    refused(r"does not fit the model: reduce.0.weight is missing")


def test_the_users_tensors_stay_theirs(vgg_bam):
    state = official(vgg_bam, "bam")
    model = load_official(state, "bam", "vgg16", 5, "coco")
    theirs = {v.data_ptr() for v in state.values()}
    assert not theirs & {v.data_ptr() for v in model.state_dict().values()}


def test_from_the_command_line_to_a_number(fss, toy_root, tmp_path):
    """An imported run evaluates, and trains on."""
    torch.manual_seed(0)
    backbone = resnet18(ResNetOptions(dilation="pfenet"))[0].requires_grad_(False)
    reference = as_trained(BAM(backbone, BAMOptions(width=8, shot=2, base_classes=15)))
    torch.save({"state_dict": official(reference, "bam")}, tmp_path / "best.pth")
    common = (*TOY, f"dataset.root={toy_root}", "fold=0", "method=bam", "backbone=resnet18", "recipe=bam", "workers=0")
    small = ("recipe.size=65", "recipe.batch_size=2", "recipe.max_steps=1", "validate.episodes=2")
    paths = (f"source={tmp_path / 'best.pth'}", f"target={tmp_path / 'run'}")
    status, _, err = fss("import-official", *common, *small, *paths, "shot=1")
    assert status == 1
    assert "shot=1, but its kshot_rw was trained with 2 shots; set shot=2" in one_line(err)
    assert fss("import-official", *common, *small, *paths, "shot=2")[0] == 0
    content = load_checkpoint(tmp_path / "run", "train")
    assert content["selection"] == SELECTED_ON_NOVEL  # as the official code chooses what it keeps; strict refuses it
    assert content["trained_on"]["backbone_weights"] == "official best.pth"
    imported = restore_model(*choices(content), content["model"], "run")
    same(imported.eval(), reference, episode(shot=2))
    status, _, err = fss("import-official", *common, *small, *paths, "shot=2")
    assert status == 1
    assert f"target={tmp_path / 'run'}: holds a run already" in one_line(err)

    evaluation = (
        f"checkpoint={tmp_path / 'run'}",
        "protocol.episodes=2",
        "protocol.never_drawn=leave_out",
        "workers=0",
        f"hydra.run.dir={tmp_path}/out",
    )
    status, _, err = fss("evaluate", *evaluation, "shot=[1,3]")
    assert status == 1
    assert "shot=3: this BAM was trained at 2 shots" in one_line(err)
    status, _, err = fss("evaluate", *evaluation, "shot=[1,3]", "+method.other_shots=mean")
    assert status == 0, err
    result = json.loads((tmp_path / "out" / "3shot" / "result.json").read_text())
    assert set(result["also"]) == {"meta", "base classes"}
    assert result["checkpoint"]["method_options_changed"] == {"other_shots": "mean"}
    status, _, err = fss("evaluate", *evaluation, "+method.width=9")
    assert status == 1
    assert "leave method.width out" in one_line(err)
    assert fss("train", f"resume={tmp_path / 'run'}", "workers=0")[0] == 0
    assert load_checkpoint(tmp_path / "run", "train")["step"] == 1


def test_an_official_base_learner_serves_bam(fss, toy_root, tmp_path):
    """Imported, it is a run of pretrain: BAM trains with it, on its backbone, and is refused another fold's."""
    torch.manual_seed(0)
    reference = as_trained(BaseLearner(resnet18(ResNetOptions(dilation="pfenet"))[0], 15))
    state = official(reference, "base_learner")
    state |= {f"encoder.{k[5:]}": v for k, v in state.items() if k.startswith("layer")}
    state = {f"module.{k}": v for k, v in state.items()}
    torch.save({"epoch": 7, "state_dict": state, "optimizer": {}}, tmp_path / "best.pth")
    run, toy = tmp_path / "base", (*TOY, f"dataset.root={toy_root}", "backbone=resnet18", "workers=0")
    status, _, err = fss(
        "import-official", *toy, "method=base_learner", f"source={tmp_path / 'best.pth'}", f"target={run}", "fold=1",
        "recipe=base_learner", "recipe.batch_size=2", "recipe.size=65", "recipe.max_steps=1",
    )  # fmt: skip
    assert status == 0, err
    content = load_checkpoint(run, "pretrain")
    assert {k: content["trained_on"][k] for k in ("dataset", "fold")} == {"dataset": "toy", "fold": 1}
    assert len(content["trained_on"]["classes"]) == 15
    for name, value in reference.state_dict().items():
        assert torch.equal(content["model"][name], value), name

    bam = (
        *toy, "method=bam", "method.width=8", f"method.base_learner={run}", "recipe=bam", "recipe.size=65",
        "recipe.batch_size=2", "recipe.max_steps=1", "validate.episodes=2", "tuning=frozen",
        f"backbone.weights={run}/checkpoints/last.pt",
    )  # fmt: skip
    status, _, err = fss("train", *bam, "fold=1")
    assert status == 1
    assert "made with backbone.dilation=pfenet, which is not this run's" in one_line(err.splitlines()[-1])
    status, _, err = fss("train", *bam, "backbone.dilation=pfenet", "fold=0")
    assert status == 1
    assert "made with fold=1, which is not this run's" in one_line(err.splitlines()[-1])
    status, _, err = fss("train", *bam, "backbone.dilation=pfenet", "fold=1", f"hydra.run.dir={tmp_path}/bam")
    assert status == 0, err
    assert not any(name.startswith("base.stages") for name in load_checkpoint(tmp_path / "bam", "train")["model"])
    assert fss("pretrain", f"resume={run}", "workers=0")[0] == 0
    assert load_checkpoint(run, "pretrain")["step"] == 1


def test_a_base_learner_of_other_classes_is_refused(fss, toy_root, tmp_path):
    with torch.device("meta"):
        model = BaseLearner(resnet18(ResNetOptions(dilation="pfenet"))[0], 60)
    state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in official(model, "base_learner").items()}
    torch.save({"state_dict": state}, tmp_path / "best.pth")
    paths = (f"source={tmp_path / 'best.pth'}", f"target={tmp_path / 'run'}")
    toy = (*TOY, f"dataset.root={toy_root}", "backbone=resnet18")
    status, _, err = fss("import-official", *toy, *paths, "method=base_learner")
    assert status == 1
    assert "60 base classes, fold 0 of toy has 15" in one_line(err)
    status, _, err = fss("train", *toy, "method=base_learner")
    assert status == 1
    assert "method=base_learner: unknown" in one_line(err)


def choices(content):
    config = from_mapping(TrainConfig, content["config"])
    return config.method, config.backbone, config.tuning
