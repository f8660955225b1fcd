"""BAM: its base branch, what it refuses, its shots, its base labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fss_svf import svf
from fss_svf.backbones.resnet import TinyOptions, tiny
from fss_svf.checkpoint import load_checkpoint
from fss_svf.data.fold import Fold
from fss_svf.data.loading import TrainEpisodes, base_label_lookup, collate_episodes
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.methods.bam import BAM, BAMOptions
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.model import build_model, restore_model
from fss_svf.registry import DATASETS, METHODS, Choice
from fss_svf.training.pretrain import pretrain
from fss_svf.training.train import train
from tests.conftest import toy_options
from tests.methods.test_methods import episode
from tests.training.test_training import changed_by_training, pretrain_config, train_config


def bam(tuning="frozen", **options):
    torch.manual_seed(1)
    backbone = tiny(TinyOptions(width=8))[0]
    if tuning == "frozen":
        backbone.requires_grad_(False)
    elif tuning == "svf":
        backbone.requires_grad_(False)
        svf.decompose(backbone, [r"^layer[234]\."])
    return BAM(backbone, BAMOptions(**{"width": 8, "base_classes": 3, **options}))


def training_episode(shot=1):
    e = episode(shot=shot)
    return replace(e, base_mask=e.query_mask * 1, base_class=torch.tensor([1, 3]))


def base_logits(model, e):
    with torch.no_grad():
        return model.eval()(e).aux["base"]


@pytest.mark.parametrize("tuning", ["svf", "full"])
def test_training_leaves_the_base_branch_as_it_was_bit_for_bit(tuning):
    model, e = bam(tuning), training_episode()
    frozen = base_logits(bam("frozen"), e)
    assert torch.equal(base_logits(model, e), frozen)
    moving = [p for p in model.backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.1)
    before = model(e).aux["meta"]
    for _ in range(2):
        loss = sum(model.train().losses(model(e), e).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not torch.equal(model.eval()(e).aux["meta"], before)
    assert torch.equal(base_logits(model, e), frozen)
    svf.merge(model)
    assert torch.equal(base_logits(model, e), frozen)


def test_the_base_branch_repeats_only_what_moves(monkeypatch):
    """frozen: nothing. SVF in layers 2 to 4: those three, on the queries alone. Trained in place: all, on copies."""
    runs = []
    for name, expected in (("frozen", []), ("svf", ["layer2", "layer3", "layer4"]), ("full", [])):
        model, e = bam(name, shot=5), episode(shot=5)
        assert set(model.base.stages) == ({f"layer{i}" for i in range(5)} if name == "full" else set())
        runs.clear()
        for stage, module in model.backbone.named_children():
            module.register_forward_hook(lambda _, x, __, stage=stage: runs.append((stage, len(x[0]))))
        base_logits(model, e)
        shared = [("layer0", 12), ("layer1", 12), ("layer2", 12), ("layer3", 12), ("layer4", 12)]
        assert runs == shared[:5] + [(stage, 2) for stage in expected]


def test_the_base_branch_is_the_base_learner():
    torch.manual_seed(0)
    learner, e = BaseLearner(tiny(TinyOptions(width=8))[0], 3).eval(), episode()
    for tuning in ("frozen", "svf"):
        model = bam(tuning)
        model.base.load(learner.state_dict(), model.backbone, "test")
        assert set(model.base.stages) == {f"layer{i}" for i in range(5)}  # another backbone than its own
        with torch.no_grad():
            assert torch.equal(base_logits(model, e), learner(e.query_image))
    # On the learner's own backbone nothing is held twice.
    model = BAM(learner.backbone.requires_grad_(False), BAMOptions(width=8, base_classes=3))
    model.base.load(learner.state_dict(), model.backbone, "test")
    assert not model.base.stages
    with torch.no_grad():
        assert torch.equal(base_logits(model, e), learner(e.query_image))


def test_the_base_branch_never_trains():
    model = bam("svf").train()
    assert not any(p.requires_grad for p in model.base.parameters())
    assert not any(m.training for m in model.base.modules() if isinstance(m, nn.BatchNorm2d))


def test_its_own_class_says_nothing_against_the_object_in_training():
    model = bam().eval()
    meta, base = torch.randn(2, 2, 3, 3), torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        model.cls_merge.weight.copy_(torch.tensor([1.0, 1.0]).view(1, 2, 1, 1))
        distance = torch.zeros(2)
        whole = model._ensemble(meta, base, distance, None)
        left_out = model._ensemble(meta, base, distance, torch.tensor([0, 2]))
    p = base.softmax(1)
    torch.testing.assert_close(whole[:, 0], meta.softmax(1)[:, 0] + p[:, 1:].sum(1))
    assert torch.equal(left_out[0], whole[0])
    torch.testing.assert_close(left_out[1, 0], whole[1, 0] - p[1, 2])
    assert torch.equal(left_out[:, 1], whole[:, 1])


def test_training_without_base_labels_is_refused():
    with pytest.raises(ValueError, match="BAM trains on episodes with base_class"):
        bam().train()(episode())


def test_another_number_of_shots_is_refused_or_averaged():
    e = episode(shot=3)
    for trained, also in ((1, ""), (5, "s")):
        with pytest.raises(
            ConfigError, match=f"shot=3: this BAM was trained at {trained} shot{also} and has no weights"
        ):
            bam(shot=trained).eval()(e)
        model = bam(shot=trained, other_shots="mean").eval()
        torch.testing.assert_close(model._shot_weights(torch.rand(2, 3)), torch.full((2, 3), 1 / 3))
        assert torch.isfinite(model(e).logits).all()
    one = bam(shot=5).eval()
    assert one(episode(shot=1)).logits.shape == (2, 2, 65, 65)


@pytest.mark.parametrize("hidden", [0, 2])
def test_shot_weights_follow_their_shots(hidden):
    model = bam(shot=4, kshot_trans_dim=hidden)
    nn.init.normal_(next(model.kshot.parameters()))
    distance = torch.tensor([[0.3, 0.1, 0.4, 0.2]])
    weights = model._shot_weights(distance)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    torch.testing.assert_close(model._shot_weights(distance[:, order]), weights[:, order])


# ---------------------------------------------------------------------------------------------------------------------
# From a base learner to a run


@pytest.fixture(scope="module")
def base_run(toy_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    pretrain(pretrain_config(toy_root), out)
    return out


def bam_config(toy_root, base_run, tuning="svf", shot=1, **changes):
    config = train_config(toy_root, tuning, shot=shot)
    return replace(
        config,
        method=Choice("bam", BAMOptions(width=8, shot=shot, base_learner=base_run)),
        recipe=replace(config.recipe, max_steps=4),
        **changes,
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("tuning", ["frozen", "svf"])
def test_train_restore_resume(toy_root, base_run, tmp_path, tuning, shared):
    """The base learner is in the checkpoint: neither restoring nor resuming reads its file as one again."""
    config = bam_config(toy_root, base_run, tuning, shot=2)
    if shared:
        weights = replace(config.backbone.options, weights=str(base_run / "checkpoints" / "last.pt"))
        config = replace(config, backbone=replace(config.backbone, options=weights))
    train(config, tmp_path)
    content = load_checkpoint(tmp_path, "train")
    copies = {name.split(".")[2] for name in content["model"] if name.startswith("base.stages.")}
    assert len(copies) == (0 if shared else 5)
    gone = replace(config, method=replace(config.method, options=replace(config.method.options, base_learner="gone")))
    choices = gone.method, gone.backbone, gone.tuning
    model = restore_model(*choices, content["model"], "test", content.get("base"))
    assert (content["format"] == 2) == shared  # whose backbone has weights in a file
    assert model.base.classes == 15
    restored = model.state_dict()
    assert all(torch.equal(v, restored[k]) for k, v in content["model"].items())
    longer = replace(gone, recipe=replace(gone.recipe, max_steps=6), resume=tmp_path)
    train(longer, tmp_path)
    assert load_checkpoint(tmp_path, "train")["step"] == 6


def test_a_base_learner_that_does_not_fit_is_refused(toy_root, base_run, tmp_path):
    def refused(error, match, **changes):
        with pytest.raises(error, match=match):
            train(replace(bam_config(toy_root, base_run), **changes), tmp_path / "run")

    where = f"method.base_learner={base_run}: "
    refused(WeightsError, f"{where}made with fold=0, which is not this run's", fold=1)
    wide = Choice("tiny", TinyOptions(width=16))
    refused(WeightsError, f"{where}made on another backbone than this run's, see ppm", backbone=wide)
    regrouped = Choice("toy", toy_options(toy_root, class_partition="mod4"))
    refused(WeightsError, f"{where}made with other base classes", dataset=regrouped)
    none = Choice("bam", BAMOptions(width=8))
    refused(ConfigError, "method.base_learner: null; BAM needs the base learner of this fold", method=none)
    assert not (tmp_path / "run").exists()


def test_backbone_options_and_datasets_are_compared_by_name(toy_root, base_run):
    config = bam_config(toy_root, base_run)
    model, _ = build_model(config.method, config.backbone, config.tuning)
    classes = list(model.trained_on["classes"])
    model.check_run("toy", 0, classes, config.backbone)
    with pytest.raises(WeightsError, match=r"made with dataset=toy, .* dataset=coco fold=0 backbone=tiny"):
        model.check_run("coco", 0, classes, config.backbone)
    with pytest.raises(WeightsError, match="made with backbone=tiny"):
        model.check_run("toy", 0, classes, Choice("resnet18", config.backbone.options))
    with pytest.raises(WeightsError, match=r"made with backbone\.width=8"):
        model.check_run("toy", 0, classes, Choice("tiny", TinyOptions(width=16)))


def test_base_labels_move_with_the_query(toy_root):
    """Where the episode's class lies, the base label says its number, on the same augmented image."""
    dataset = DATASETS.entry("toy").build(toy_options(toy_root))
    split = dataset.split("train")
    sampler = Fold(dataset.options, split.index.class_names, 1).sampler(split.index, "train", 1, 3, "shuffled_epochs")
    base = Fold(dataset.options, split.index.class_names, 1).base
    augment = train_config(toy_root).recipe.augment
    with_base, plain = (TrainEpisodes(split, sampler, 65, augment, base=classes) for classes in (base, None))
    for number in range(20):
        e, p = with_base(number), plain(number)
        assert torch.equal(e.query_image, p.query_image)
        assert torch.equal(e.query_mask, p.query_mask)
        assert torch.equal(e.support_masks, p.support_masks)
        assert p.base_mask is None
        assert int(e.base_class) == base.index(int(e.class_id)) + 1
        assert torch.equal(e.base_mask == e.base_class, e.query_mask == 1)
        assert torch.equal(e.base_mask == 255, e.query_mask == 255)
    batch = collate_episodes([with_base(0), with_base(1)])
    assert batch.base_mask.shape == (2, 65, 65)
    assert batch.base_class.shape == (2,)
    assert isinstance(batch.to("cpu"), Episode)
    assert np.array_equal(base_label_lookup(split.index, base)[list(base)], np.arange(1, 16))


OTHERS = ("baseline", "pfenet")


# BAM with each tuning; the others with the two that train what was there before.
@pytest.mark.parametrize(
    ("method", "tuning"),
    [
        *(("bam", tuning) for tuning in ("frozen", "svf", "full", "lora")),
        *((method, tuning) for method in OTHERS for tuning in ("svf", "full")),
        *(pytest.param(method, tuning, marks=pytest.mark.long) for method in OTHERS for tuning in ("frozen", "lora")),
    ],
)
def test_every_method_learns_and_only_what_is_announced_changes(toy_root, base_run, tmp_path, method, tuning):
    options = {
        "baseline": {"down_query_trains": True, "shots_reduce": "mean"},
        "pfenet": {"bins": (9, 4)},
        "bam": {"base_learner": base_run},
    }
    config = bam_config(toy_root, base_run, tuning)
    config = replace(
        config,
        method=Choice(method, METHODS.entry(method).options(width=8, **options[method])),
        validate=replace(config.validate, every=30),
        # Crops that show the whole image: else the share of the object, and so the loss, is another one at every step.
        recipe=replace(
            config.recipe,
            max_steps=30,
            batch_size=4,
            optimizer=replace(config.recipe.optimizer, name="adamw"),
            augment=replace(config.recipe.augment, scale=(0.3, 0.33)),
        ),
    )
    changed = changed_by_training(config, tmp_path)
    in_backbone = {name.split(".")[-1] for name in changed if name.startswith("backbone.")}
    moving = {"frozen": set(), "svf": {"S"}, "full": {"weight", "bias"}, "lora": {"lora_a", "lora_b"}}
    assert in_backbone == moving[tuning]
    losses = scalars(tmp_path, "loss/main")
    assert sum(losses[-10:]) < sum(losses[:10])


def scalars(run, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]
