"""Precisions: which digits a step computes with, and what stays in float32 under every one of them."""

import copy
import warnings
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch import nn

from fss_svf import svf
from fss_svf.config import Optimizer
from fss_svf.methods.blocks import gram_distance, gram_matrix, masked_average_pooling, prior_mask
from fss_svf.methods.method import cross_entropy
from fss_svf.methods.panet import alignment_loss, cosine_scores, masked_means
from fss_svf.model import place
from fss_svf.precision import autocast, computing, gradient_scaler, in_float32, set_tf32
from fss_svf.training.optim import make_optimizer
from tests.methods.test_methods import episode, model

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]
CPU = torch.device("cpu")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
half = pytest.mark.parametrize("precision", HALF)


def tf32():
    """Whether matrix products and convolutions may use TF32."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def flags():
    before = tf32()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# ---------------------------------------------------------------------------------------------------------------------
# TF32 and autocast


@pytest.mark.usefixtures("flags")
def test_tf32_is_a_precision_of_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision, allowed in {"tf32": True, "float32": False, "bf16": False, "fp16": False}.items():
            set_tf32(precision)
            assert tf32() == (allowed, allowed)
            # PyTorch raises there where its older and newer names of the switch differ.
            assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")


@pytest.mark.usefixtures("flags")
def test_contexts_leave_tf32_as_it_was():
    set_tf32("tf32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with computing(CPU, "float32"):
            assert tf32() == (False, False)
            with computing(CPU, "tf32"):
                assert tf32() == (True, True)
            assert tf32() == (False, False)
        assert tf32() == (True, True)
        with suppress(KeyError), in_float32(torch.device("cuda")):
            assert tf32() == (False, False)
            raise KeyError
        assert tf32() == (True, True)
        torch.backends.cuda.matmul.allow_tf32 = False
        with in_float32(torch.device("cuda")):
            assert tf32() == (False, False)
        assert tf32() == (False, True)  # PyTorch's own default


@half
def test_autocast_and_its_absence(precision):
    x = torch.randn(4, 4)
    for context, dtype in ((autocast, HALF[precision]), (computing, HALF[precision])):
        with context(CPU, precision):
            assert (x @ x).dtype == dtype
            with in_float32(CPU):
                assert (x @ x).dtype == torch.float32
            with in_float32(torch.device("meta")):
                assert (x @ x).dtype == torch.float32
            assert (x @ x).dtype == dtype
    for other in ("float32", "tf32"):
        with autocast(CPU, other):
            assert (x @ x).dtype == torch.float32


def test_the_gradient_scaler_works_for_fp16_alone():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for precision in ("float32", "tf32", "bf16"):
        scaler = gradient_scaler(CPU, precision)
        assert not scaler.is_enabled()
        assert scaler.scale(weight.sum()) == 3
    scaler = gradient_scaler(CPU, "fp16")
    scale = scaler.get_scale()
    scaler.scale(weight.sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight, torch.ones(3))
    assert scaler.get_scale() < scale
    optimizer.zero_grad()
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(weight, torch.zeros(3))


# ---------------------------------------------------------------------------------------------------------------------
# What stays in float32


def delicate():
    """By name: a function and its inputs, of which the floats are features of a network."""
    g = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, generator=g)

    masks = (torch.rand(2, 33, 33, generator=g) < 0.3).to(torch.uint8)
    small = (torch.rand(2, 1, 9, 9, generator=g) < 0.5).float()
    return {
        "prior": (prior_mask, some(2, 32, 9, 9), some(2, 3, 32, 9, 9) * small.unsqueeze(1)),
        "prototype": (lambda x: masked_average_pooling(x, small), some(2, 16, 9, 9) + 3),
        "gram": (gram_matrix, some(2, 16, 9, 9)),
        "gram distance": (gram_distance, some(2, 16, 16), some(2, 3, 16, 16)),
        "masked means": (lambda x: masked_means(x, masks), some(2, 16, 9, 9) + 3),
        "cosine scores": (cosine_scores, some(2, 16, 9, 9), some(2, 3, 16)),
        "cross-entropy": (lambda x: cross_entropy(x, masks), 5 * some(2, 2, 33, 33)),
        "alignment": (
            lambda q, s: alignment_loss(some(2, 2, 9, 9).sign(), q, s, masks[:, None, None]),
            some(2, 16, 9, 9),
            some(2, 1, 1, 16, 9, 9),
        ),
    }


@half
@pytest.mark.parametrize("name", delicate())
def test_autocast_does_not_reach_what_is_delicate(precision, name):
    for dtype in (torch.float32, HALF[precision]):
        found = []
        for context in (autocast(CPU, precision), in_float32(CPU)):
            function, *inputs = delicate()[name]
            inputs = [x.to(dtype) if not found else x.to(dtype).float() for x in inputs]
            with context:
                found.append(function(*inputs))
        assert found[0].dtype == torch.float32
        assert torch.equal(*found)


@half
def test_factors_and_weights_stay_in_float32(precision):
    conv = nn.Conv2d(16, 16, 3)
    plain = svf.decompose(copy.deepcopy(conv))
    with autocast(CPU, precision):
        cast = svf.decompose(conv)
        assert all(torch.equal(a, b) for a, b in zip(cast.parameters(), plain.parameters(), strict=True))
        weight = cast.effective_weight()
    assert torch.equal(weight, plain.effective_weight())


@half
@pytest.mark.parametrize("name", ["baseline", "pfenet", "bam", "panet", "prototype"])
def test_predictions_come_in_float32(precision, name):
    method = model(name, shot=2).eval()
    e = replace(episode(shot=2), base_mask=torch.zeros(2, 65, 65, dtype=torch.uint8))
    with torch.no_grad(), autocast(CPU, precision):
        prediction = method(e)
        losses = method.losses(prediction, e)
    assert prediction.logits.dtype == torch.float32
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@half
def test_what_bam_weighs_is_not_rounded(precision):
    """Its final logits are probabilities, and how unlike scenes are is told in the third digit."""
    method, e = model("bam", shot=2).eval(), episode(shot=2)
    with torch.no_grad():
        query, support = method.encode(e)
        support = method.compared_with(query, support)
        method.logits = lambda feature, prototype, prior: torch.stack(
            [prototype[:, :2].sum(1), prior.mean((1, 2, 3))], 1
        )[..., None, None].expand(-1, -1, 9, 9)
        exact = method.segment(query, support, e.size).logits
        with autocast(CPU, precision):
            assert torch.equal(method.segment(query, support, e.size).logits, exact)


# ---------------------------------------------------------------------------------------------------------------------
# Small moves of singular values


@half
@pytest.mark.parametrize("execution", ["factored", "rebuilt"])
@pytest.mark.parametrize("rank", [None, 48])  # W + U diag(S - S0) Vh, and U diag(S) Vh
def test_a_small_move_of_s_shows_in_half_precision(precision, execution, rank):
    """1e-4 is a fortieth of bfloat16's step: S rounded to it would not move at all."""
    conv = svf.decompose(nn.Conv2d(64, 64, 3, padding=1, bias=False), rank=rank, execution=execution)
    x = torch.randn(2, 64, 24, 24)

    def loss(cast):
        with autocast(CPU, cast):
            y = conv(x)
        assert y.dtype == HALF.get(cast, torch.float32)
        return y.double().square().mean()

    changes, gradients = {}, {}
    for cast in ("float32", precision):
        start = loss(cast)
        (gradients[cast],) = torch.autograd.grad(start, conv.S)
        with torch.no_grad():
            kept = conv.S.clone()
            conv.S.mul_(1 + 1e-4)
        changes[cast] = float(loss(cast).detach() / start.detach()) - 1
        with torch.no_grad():
            conv.S.copy_(kept)
    assert changes["float32"] == pytest.approx(2e-4, rel=0.01)
    assert changes[precision] == pytest.approx(2e-4, rel=0.25)
    error = (gradients[precision] - gradients["float32"]).norm() / gradients["float32"].norm()
    assert error < 0.02


# ---------------------------------------------------------------------------------------------------------------------
# Training steps


def training(name, tuned):
    """A method with SVF on its tiny backbone, or the whole of it for PANet, and a batch of two episodes."""
    method, e = model(name), episode()
    if tuned:
        svf.decompose(method.backbone, [r"^layer[234]\."], execution="auto")
    e = replace(e, base_mask=e.query_mask.clone(), base_class=torch.ones(2, dtype=torch.int64))
    return method.train(), e


@half
@pytest.mark.parametrize(
    ("name", "tuned"), [("baseline", False), *((n, True) for n in ("baseline", "pfenet", "bam", "panet"))]
)
def test_every_method_trains_in_half_precision(precision, name, tuned):
    method, e = training(name, tuned)
    losses = {}
    for cast in ("float32", precision):
        copied = copy.deepcopy(method)
        optimizer = make_optimizer(copied, copied.backbone, Optimizer("sgd", 0.01, 0.001, 0.9, 1e-4))
        scaler = gradient_scaler(CPU, cast)
        torch.manual_seed(0)  # dropout
        losses[cast] = []
        for _ in range(4):
            with autocast(CPU, cast):
                loss = torch.stack(list(copied.losses(copied(e), e).values())).sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[cast].append(float(loss.detach()))
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in copied.parameters())
    assert losses[precision][0] == pytest.approx(losses["float32"][0], rel=0.03)
    assert losses[precision] != losses["float32"]
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Memory format


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_model_is_placed_in_either_memory_format(channels_last):
    method, e = training("baseline", True)
    expected = method.eval()(e).logits
    place(method, CPU, channels_last=not channels_last)
    place(method, CPU, channels_last=channels_last)
    weight = method.backbone.layer2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous() != channels_last
    torch.testing.assert_close(method(e).logits, expected, rtol=1e-4, atol=1e-5)
