"""One optimizer step: the same in parts as in one go, its random numbers, its limits."""

import copy
from contextlib import nullcontext
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from fss_svf.config import Optimizer
from fss_svf.episode import Episode
from fss_svf.registry import METHODS
from fss_svf.training.optim import make_optimizer
from fss_svf.training.step import LossNotFinite, Step, in_steps
from tests.methods.test_methods import episode, in_float64, model

pytestmark = pytest.mark.numeric

TRAINED = [name for name in METHODS.names() if METHODS.entry(name).build.trainable]


def uneven(batch=4):
    """A batch whose items hold different numbers of pixels that are not ignored, in the two masks differently."""
    e = episode(batch, size=65, seed=3)
    base = torch.randint(0, 4, e.query_mask.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    for i in range(batch):
        e.query_mask[i, : 5 + 13 * i] = 255
        base[i, :, : 40 - 9 * i] = 255
    return replace(e, base_mask=base, base_class=torch.tensor([1, 2, 3, 1]))


def rows(e, begin, end):
    values = {f.name: getattr(e, f.name) for f in fields(Episode)}
    return Episode(**{name: None if v is None else v[begin:end] for name, v in values.items()})


def step_of(method, accumulate=1, seed=0, **options):
    trainable = [p for p in method.parameters() if p.requires_grad]
    means = {"": "query_mask", **method.means_over}
    return Step(
        method.train(),
        lambda e: method.losses(method(e), e),
        lambda e: {term: e.count(what) for term, what in means.items()},
        torch.optim.SGD(trainable, lr=0.0),
        seed,
        torch.amp.GradScaler("cpu", enabled=False),
        accumulate,
        **options,
    )


def made(step, number, parts):
    """The terms of a step."""
    step(number, parts)
    return step.read()


def without_dropout(method):
    for module in method.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    if not any(p.requires_grad for p in method.parameters()):
        method.backbone.requires_grad_(True)  # PANet has nothing of its own
    return method


def gradients(method):
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", TRAINED)
def test_parts_make_the_step_of_the_whole(name):
    method, e = without_dropout(model(name)).double(), in_float64(uneven())
    with torch.no_grad():  # losses of fresh heads are all near ln 2, whatever the part
        for key, value in method.named_parameters():
            if value.dim() > 1 and not key.startswith("backbone."):
                value.mul_(2)
    terms = made(step_of(method), 0, [e])
    whole = gradients(method)
    for cuts in ((0, 2, 4), (0, 1, 2, 3, 4), (0, 1, 4)):
        parts = [rows(e, a, b) for a, b in pairwise(cuts)]
        assert made(step_of(method, len(parts)), 0, parts) == pytest.approx(terms, rel=1e-9)
        for key, value in gradients(method).items():
            assert (value - whole[key]).norm() <= 1e-8 * whole[key].norm() + 1e-14, key
    # The plain mean over parts would be another number.
    means = [method.losses(method(part), part)["main"] for part in parts]
    assert float(torch.stack(means).mean().detach()) != pytest.approx(terms["main"], rel=1e-5)


def test_what_is_drawn_depends_on_seed_step_and_part_alone():
    e = uneven()
    halves = [rows(e, 0, 2), rows(e, 2, 4)]

    def loss(seed, step, parts):
        torch.rand(7)  # whatever ran before
        return made(step_of(model("baseline"), len(parts), seed), step, parts)["main"]

    assert loss(0, 5, halves) == loss(0, 5, halves)
    assert len({loss(0, 5, halves), loss(0, 6, halves), loss(1, 5, halves), loss(0, 5, [e])}) == 4


def test_a_long_gradient_is_shortened():
    method = without_dropout(model("baseline"))
    step_of(method)(0, [uneven()])
    free = gradients(method)
    norm = torch.stack([g.norm() for g in free.values()]).norm()
    step_of(method, clip_norm=float(norm) / 4)(0, [uneven()])
    for name, value in gradients(method).items():
        torch.testing.assert_close(value, free[name] / 4, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
@pytest.mark.parametrize("scaled", [False, True])
def test_norms_are_those_of_the_gradients_before_clipping_and_change_nothing(scaled, clip_norm):
    """A scaler makes gradients longer; theirs are those of the loss."""
    plain, kept = (
        small("sgd", True, torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None, clip_norm) for _ in range(2)
    )
    assert kept.read_norms() == {}
    loss = kept._loss(small_batch(0)[0], {})["main"]
    of_groups = {
        group["name"]: torch.cat([g.flatten() for g in torch.autograd.grad(loss, group["params"], retain_graph=True)])
        for group in kept.optimizer.param_groups
    }
    plain(0, small_batch(0))
    kept(0, small_batch(0), norms=True)
    expected = {name: float(values.norm()) for name, values in of_groups.items()}
    assert list(expected) == ["head", "backbone"]
    assert kept.read_norms() == pytest.approx({**expected, "total": float(torch.cat([*of_groups.values()]).norm())})
    assert all(torch.equal(a, b) for a, b in zip(state_of(plain), state_of(kept)))
    kept(1, small_batch(1))
    assert kept.read_norms()["head"] == pytest.approx(expected["head"])  # of the last step that kept them


def test_a_loss_that_is_not_finite_moves_nothing():
    method, e = model("baseline"), uneven()
    step = step_of(method, 2)
    step.optimizer.param_groups[0]["lr"] = 1.0
    before = [p.detach().clone() for p in method.parameters()]
    broken = rows(e, 2, 4)
    broken.query_image[0, 0, 0, 0] = float("nan")
    with pytest.raises(LossNotFinite, match="main nan"):
        step(0, [rows(e, 0, 2), broken])
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters()))


# As on a GPU, whose optimizers are fused: the CPU has such ones too


def small(name, fused, scaler=None, clip_norm=None, model=None):
    """A step of a model of two layers. Its batch: images, and what is added to the loss."""
    torch.manual_seed(0)
    model = model or nn.ModuleDict({"backbone": nn.Linear(3, 4), "head": nn.Linear(4, 1)})
    with pytest.MonkeyPatch.context() as patch:
        if fused:
            patch.setattr(torch.Tensor, "is_cuda", True, raising=False)
        optimizer = make_optimizer(model, model["backbone"], Optimizer(name, 0.1, 0.05, 0.9, 1e-4))
    assert {group["fused"] for group in optimizer.param_groups} == {True if fused else None}

    def loss(batch):
        x, more = batch
        return {"main": model["head"](model["backbone"](x)).square().mean(), "more": more * 1.0}

    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    return Step(model, loss, lambda batch: {"": len(batch[0])}, optimizer, 0, scaler, clip_norm=clip_norm)


def small_batch(number, more=0.0):
    return [(torch.randn(5, 3, generator=torch.Generator().manual_seed(number)), torch.tensor(more))]


def state_of(step):
    return [*step.model.parameters(), *(v for s in step.optimizer.state.values() for v in s.values())]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_device_makes_the_steps_that_the_host_makes(name):
    host, device = small(name, fused=False), small(name, fused=True)
    assert device.read() == {}
    for number in range(4):
        host(number, small_batch(number))
        device(number, small_batch(number))
        assert device.read() == pytest.approx(host.read(), rel=1e-5)
    for a, b in zip(host.model.parameters(), device.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_on_a_device_nothing_moves_from_the_first_loss_that_is_not_finite(name, bad, scaled, clip_norm):
    """Its number and terms are those that are read later. `inf` leaves all gradients finite."""
    step = small(name, True, torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None, clip_norm)
    for number in range(bad):
        step(number, small_batch(number))
    step.read()
    before, scale = copy.deepcopy(state_of(step)), step.scaler.state_dict()
    step(bad, small_batch(bad, float("inf")))
    step(bad + 1, small_batch(bad + 1))
    step(bad + 2, small_batch(bad + 2, float("nan")))
    with pytest.raises(LossNotFinite, match=r"^main \d\S+, more inf$") as caught:
        step.read()
    assert caught.value.step == bad
    after = state_of(step)
    assert step.scaler.state_dict() == scale
    if before:
        assert len(after) >= len(before)
        assert all(torch.equal(a, b) for a, b in zip(before, after))
    # What the first step left out begins as if it had never been tried.
    assert all(not value.any() for value in after[len(before) :])


@pytest.mark.parametrize("fused", [False, True])
def test_statistics_of_a_batch_norm_that_trains_stay_where_the_loss_is_not_finite(fused):
    """They move in the forward, before there is a loss."""
    model = nn.ModuleDict({"backbone": nn.BatchNorm1d(3), "head": nn.Linear(3, 1)})
    step = small("sgd", fused, model=model)
    step(0, small_batch(0))
    buffers = copy.deepcopy(dict(model.named_buffers()))
    assert buffers["backbone.running_mean"].any()

    def two_bad_steps():
        for number in (1, 2):
            step(number, [(torch.full((5, 3), float("nan")), torch.zeros(()))])
        step.read()

    with pytest.raises(LossNotFinite, match="main nan"):
        two_bad_steps()
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_a_step_of_fp16_that_overflows_leaves_the_momentum_defined():
    """PyTorch allocates momentum in the first step, and leaves it as it was allocated where that step is left out."""
    step = small("sgd", True, torch.amp.GradScaler("cpu", init_scale=1e38))
    step(0, [(1e3 * torch.ones(5, 3), torch.zeros(()))])
    assert not any(value.any() for s in step.optimizer.state.values() for value in s.values())
    assert step.scaler.get_scale() < 1e38
    assert step.read()["main"] > 0


def test_the_forward_runs_in_the_context():
    entered = []

    class Context(nullcontext):
        def __enter__(self):
            entered.append(1)

    e = uneven()
    step_of(model("baseline"), 2, context=Context)(0, [rows(e, 0, 2), rows(e, 2, 4)])
    assert len(entered) == 2


def test_items_in_steps():
    assert list(in_steps(iter(range(6)), 2)) == [[0, 1], [2, 3], [4, 5]]
    assert list(in_steps(iter([]), 2)) == []
