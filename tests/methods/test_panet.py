"""PANet: against a plain implementation in loops, for several ways, in training, and at its edges."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fss_svf.backbones.resnet import ResNetOptions, TinyOptions, resnet18, tiny
from fss_svf.backbones.vgg import VGGOptions, vgg16_plain
from fss_svf.checkpoint import load_checkpoint
from fss_svf.data.fold import Fold
from fss_svf.data.loading import TrainEpisodes, collate_episodes
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError
from fss_svf.methods.baseline import Baseline, BaselineOptions
from fss_svf.methods.method import flat_supports, regroup
from fss_svf.methods.panet import PANet, PANetOptions, alignment_loss, masked_means
from fss_svf.model import restore_model
from fss_svf.registry import BACKBONES, DATASETS, METHODS
from fss_svf.training.train import train
from tests.training.test_training import options_of, train_config

pytestmark = pytest.mark.numeric

SIZE = 33


@cache
def backbone(name):
    torch.manual_seed(1)
    build = {
        "tiny": lambda: tiny(TinyOptions(width=8)),
        "resnet18": lambda: resnet18(ResNetOptions()),
        "vgg16_plain": lambda: vgg16_plain(VGGOptions()),
    }
    return build[name]()[0]


def panet(name="tiny", **options):
    return PANet(backbone(name), PANetOptions(**options))


def episode(way=1, shot=1, batch=2, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    ways = () if way == 1 else (way,)
    masks = (torch.rand(batch, *ways, shot, SIZE, SIZE, generator=g) < 0.3).to(torch.uint8)
    masks[..., :3] = 255
    query_mask = torch.randint(0, 1 + way, (batch, SIZE, SIZE), generator=g).to(torch.uint8)
    query_mask[:, 5] = 255
    return Episode(
        torch.randn(batch, 3, SIZE, SIZE, generator=g).to(dtype),
        torch.randn(batch, *ways, shot, 3, SIZE, SIZE, generator=g).to(dtype),
        masks,
        query_mask,
    )


def cosine(feature, prototype):
    """(C, h, w) and (C,) to (h, w)."""
    return 20 * F.cosine_similarity(feature, prototype[:, None, None], dim=0)


def enlarged(x):
    """(C, h, w) to (C, SIZE, SIZE)."""
    return F.interpolate(x[None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]


def mean_inside(feature, mask):
    mask = mask.to(feature.dtype)
    return (enlarged(feature) * mask).sum((1, 2)) / (mask.sum() + 1e-5)


def plain(model, e):
    """PANet as the paper tells it: image by image. Logits, segmentation loss, alignment loss."""

    def features(image):
        return model.backbone(image[None], ["layer4"])["layer4"][0]

    logits, align = [], 0
    for b in range(len(e.query_image)):
        query = features(e.query_image[b])
        foregrounds, backgrounds, supports = [], [], []
        for n in range(e.way):
            row = [features(e.support_images[b, n, k]) for k in range(e.shot)]
            masks = [e.support_masks[b, n, k] for k in range(e.shot)]
            foregrounds.append(sum(mean_inside(f, m == 1) for f, m in zip(row, masks)) / e.shot)
            backgrounds.append(sum(mean_inside(f, m == 0) for f, m in zip(row, masks)) / e.shot)
            supports.append(row)
        prototypes = [sum(backgrounds) / e.way, *foregrounds]
        scores = torch.stack([cosine(query, p) for p in prototypes])
        logits.append(enlarged(scores))
        said = scores.argmax(0)
        chosen = [(said == c).to(query.dtype) for c in range(1 + e.way)]
        back = [(query * mask).sum((1, 2)) / (mask.sum() + 1e-5) for mask in chosen]
        for n in range(e.way):
            if not (said == n + 1).any():
                continue
            for k in range(e.shot):
                pair = torch.stack([cosine(supports[n][k], back[0]), cosine(supports[n][k], back[n + 1])])
                labels = e.support_masks[b, n, k].long()
                align = align + F.cross_entropy(enlarged(pair)[None], labels[None], ignore_index=255) / e.shot / e.way
    logits = torch.stack(logits)
    main = F.cross_entropy(logits, e.query_mask.long(), ignore_index=255)
    return logits, {"main": main, "align": align / len(logits)}


@pytest.fixture
def double():
    """A model of float64 parameters, so that only a difference in what is computed can show."""
    torch.manual_seed(1)
    model = PANet(tiny(TinyOptions(width=8))[0].double(), PANetOptions()).train()
    # Batch statistics of nothing trained are 0 and 1; the features should have both signs.
    model.backbone.layer4.add_module("shift", nn.BatchNorm2d(64, affine=False).double().eval())
    model.backbone.layer4.shift.running_mean.fill_(0.5)
    return model


@pytest.mark.parametrize("batch", [1, 2])
def test_two_ways_and_five_shots_equal_the_plain_loops(double, batch):
    e = episode(way=2, shot=5, batch=batch, dtype=torch.float64)
    logits, losses = plain(double, e)
    prediction = double(e)
    found = double.losses(prediction, e)
    torch.testing.assert_close(prediction.logits, logits, rtol=1e-10, atol=1e-10)
    assert found.keys() == losses.keys()
    for name in losses:
        torch.testing.assert_close(found[name], losses[name], rtol=1e-10, atol=0)
        parameters = list(double.parameters())
        theirs = torch.autograd.grad(losses[name], parameters, retain_graph=True)
        ours = torch.autograd.grad(found[name], parameters, retain_graph=True)
        assert all(g.abs().max() > 0 for g in theirs)
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["tiny", "resnet18", "vgg16_plain"])
@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("way", [1, 2])
def test_encoding_apart_equals_forward(name, shot, way):
    model, e = panet(name).eval(), episode(way, shot)
    with torch.no_grad():
        whole = model(e)
        support = model.encode_support(*flat_supports(e))
        parts = model.segment(model.encode_query(e.query_image), regroup(support, shot, way), e.size)
    assert whole.logits.shape == (2, 1 + way, SIZE, SIZE)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-4)
    # What an evaluation keeps of a support is two prototypes; nothing waits for a loss.
    assert {key: value.shape[1:] for key, value in support.items()} == {
        "prototypes": (2, model.backbone.tap("deep").channels)
    }
    assert not whole.aux


def test_an_episode_does_not_see_its_batch_nor_its_numbering_of_ways():
    model, e = panet().eval(), episode(way=3, shot=2)
    with torch.no_grad():
        together = model(e).logits
        for i in range(2):
            alone = Episode(e.query_image[i : i + 1], e.support_images[i : i + 1], e.support_masks[i : i + 1])
            torch.testing.assert_close(model(alone).logits, together[i : i + 1], rtol=1e-4, atol=1e-4)
        turned = Episode(e.query_image, e.support_images.flip(1), e.support_masks.flip(1))
        torch.testing.assert_close(model(turned).logits[:, [0, 3, 2, 1]], together, rtol=1e-4, atol=1e-4)


def test_one_way_may_have_a_dimension_of_ways():
    model, e = panet().train(), episode(shot=2)
    same = replace(e, support_images=e.support_images[:, None], support_masks=e.support_masks[:, None])
    assert (same.way, same.shot) == (e.way, e.shot) == (1, 2)
    with torch.no_grad():
        assert torch.equal(model(same).logits, model(e).logits)
        assert model.losses(model(same), same) == model.losses(model(e), e)


def test_methods_of_one_class_refuse_several():
    with pytest.raises(
        ConfigError, match=r"way=2: Baseline segments one class an episode; use method=panet or ssp, or way=1"
    ):
        Baseline(backbone("tiny"), BaselineOptions(width=8))(episode(way=2))


def test_ignored_pixels_are_in_no_prototype():
    features = torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(1, SIZE, SIZE)
    masks[:, 3:9], masks[:, 9:] = 1, 255
    expected = torch.stack([features[:, :, :3].mean((2, 3)), features[:, :, 3:9].mean((2, 3))], dim=1)
    torch.testing.assert_close(masked_means(features, masks), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_does_not_reach_areas_and_cosines():
    e = episode(shot=2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = panet().train()(e)
    assert prediction.logits.dtype == torch.float32
    feature = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    exact = masked_means(feature, e.support_masks[0, :1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masked_means(feature, e.support_masks[0, :1]), exact)


@pytest.mark.parametrize("fill", [0, 1, 255])
def test_masks_of_one_value_train_without_nan(fill):
    torch.manual_seed(0)
    model, e = PANet(tiny(TinyOptions(width=8))[0], PANetOptions()).train(), episode(way=2, shot=2)
    e.support_masks[:, 0].fill_(fill)
    e.query_mask.fill_(255)
    losses = model.losses(model(e), e)
    sum(losses.values()).backward()
    assert losses["main"] == 0
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_way_that_is_predicted_nowhere_is_not_aligned():
    g = torch.Generator().manual_seed(0)
    query, support = torch.randn(1, 4, 5, 5, generator=g), torch.randn(1, 2, 3, 4, 5, 5, generator=g)
    masks = torch.randint(0, 2, (1, 2, 3, SIZE, SIZE), generator=g)
    scores = torch.zeros(1, 3, 5, 5)
    scores[:, 1, :2] = 1  # way 1 in two rows, background elsewhere, way 2 nowhere
    query.requires_grad_()
    both = alignment_loss(scores, query, support, masks)
    first = alignment_loss(scores[:, :2], query, support[:, :1], masks[:, :1])
    torch.testing.assert_close(both, first / 2)  # the number of ways divides all the same
    nothing = alignment_loss(torch.zeros(1, 3, 5, 5), query, support, masks)
    nothing.backward()
    assert nothing == 0
    assert torch.equal(query.grad, torch.zeros_like(query))


def test_align_weight():
    e, terms = episode(), {}
    for weight in (0.0, 1.0, 0.25):
        model = panet(align_weight=weight).train()
        with torch.no_grad():
            terms[weight] = model.losses(model(e), e)
    assert set(terms[0.0]) == {"main"}
    assert terms[0.25]["align"] == 0.25 * terms[1.0]["align"] > 0
    with pytest.raises(ConfigError, match=r"align_weight: expected a number >= 0, got -1"):
        PANetOptions(align_weight=-1)


@pytest.mark.parametrize(("tuning", "rate"), [("full", 0.01), ("svf", 0.3)])
def test_it_trains_what_the_tuning_says_and_the_loss_falls(toy_root, tmp_path, tuning, rate):
    config = train_config(toy_root, tuning, method=options_of(METHODS, "panet"))
    assert config.backbone == options_of(BACKBONES, "tiny", width=8)
    optimizer = replace(config.recipe.optimizer, backbone_lr=rate)
    recipe = replace(config.recipe, optimizer=optimizer, batch_size=4, size=97)
    models = []
    for steps in (1, 40):
        run = replace(config, recipe=replace(recipe, max_steps=steps), validate=replace(config.validate, every=100))
        train(run, tmp_path / str(steps))
        state = load_checkpoint(tmp_path / str(steps), "train")["model"]
        models.append(restore_model(config.method, config.backbone, config.tuning, state, "test").train())
    before, after = (model.state_dict() for model in models)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, p in models[0].named_parameters() if p.requires_grad}
    assert {name.split(".")[-1] for name in changed} == ({"S"} if tuning == "svf" else {"weight", "bias"})

    split = DATASETS.build(config.dataset).split("train")
    sampler = Fold(config.dataset.options, split.index.class_names, 0).sampler(
        split.index, "train", 1, config.seed, "shuffled_epochs"
    )
    make = TrainEpisodes(split, sampler, recipe.size, recipe.augment)
    batch = collate_episodes([make(n) for n in range(16)]).normalized()
    with torch.no_grad():
        first, last = (sum(model.losses(model(batch), batch).values()) for model in models)
    assert last < 0.97 * first
