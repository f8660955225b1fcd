import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fss_svf.svf import convolution
from fss_svf.svf.convolution import conv2d
from fss_svf.svf.execution import After, Geometry, factored_conv
from fss_svf.svf.units import conv_unit

pytestmark = pytest.mark.numeric

WIDE = [(5, 4, 25, 25), (5, 4, 9, 14), (7, 3, 8, 11), (3, 8, 5, 17)]


def both(function, *inputs):
    """The output and the gradients of every input."""
    inputs = [value.clone().requires_grad_() for value in inputs]
    y = function(*inputs)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return y.detach(), *(value.grad for value in inputs)


@pytest.mark.parametrize(("side", "d", "height", "width"), WIDE)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_wide_dilated_depthwise_convolution_equals_pytorchs(side, d, height, width, layout, monkeypatch):
    x = torch.randn(2, 6, height, width, dtype=torch.double).to(memory_format=layout)
    weight, bias = torch.randn(6, 1, side, side, dtype=torch.double), torch.randn(6, dtype=torch.double)
    how = (1, 1), (d * (side // 2),) * 2, (d, d), 6
    taken = []
    phases = convolution._in_phases
    monkeypatch.setattr(convolution, "_in_phases", lambda *a: taken.append(1) or phases(*a))
    found = both(lambda x, w, b: conv2d(x, w, b, *how), x, weight, bias)
    expected = both(lambda x, w, b: F.conv2d(x, w, b, *how), x, weight, bias)
    assert taken
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("weight", "how"),
    [
        ((6, 1, 5, 5), ((1, 1), (4, 4), (2, 2), 6)),  # not wide
        ((6, 1, 5, 5), ((2, 2), (8, 8), (4, 4), 6)),  # a stride
        ((6, 1, 5, 5), ((1, 1), (4, 4), (4, 4), 6)),  # another padding
        ((6, 3, 5, 5), ((1, 1), (8, 8), (4, 4), 2)),  # not depthwise
        ((12, 1, 5, 5), ((1, 1), (8, 8), (4, 4), 6)),  # two filters a channel
    ],
)
def test_others_are_pytorchs_own(weight, how, monkeypatch):
    monkeypatch.setattr(convolution, "_in_phases", None)
    x, weight = torch.randn(1, 6, 20, 20), torch.randn(weight)
    assert torch.equal(conv2d(x, weight, None, *how), F.conv2d(x, weight, None, *how))


@pytest.mark.parametrize("trains", [False, True], ids=["joined", "BatchNorm trains"])
def test_a_unit_with_a_relu6_equals_its_modules(trains):
    conv = nn.Conv2d(4, 4, 5, padding=8, dilation=4, groups=4, bias=False).double().requires_grad_(False)
    bn = nn.BatchNorm2d(4).double().eval().requires_grad_(trains)
    bn.running_mean.normal_(), bn.running_var.uniform_(0.01, 0.05)
    x, residual = torch.randn(2, 2, 4, 12, 12, dtype=torch.double)
    expected = both(lambda x, r: F.relu6(bn(conv(x)) + r), x, residual)
    found = both(lambda x, r: conv_unit(conv, bn, x, True, r, top=6), x, residual)
    assert (expected[0] == 6).any(), "no value reaches the end"
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_factored_form_ends_a_relu6_where_pytorch_does():
    s, u, vh = torch.rand(1, 3).double() + 1, torch.randn(1, 5, 3).double() * 3, torch.randn(3, 2, 3, 3).double()
    x, shift = torch.randn(2, 2, 6, 6).double(), torch.randn(5).double()
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)

    def plain(x, s, shift):
        weight = ((u * s.unsqueeze(1)) @ vh.flatten(1)).view(5, 2, 3, 3)
        return F.relu6(F.conv2d(x, weight, shift, padding=1))

    found = both(lambda x, s, b: factored_conv(x, s, u, vh, geometry, After(None, b, None, True, 6)), x, s, shift)
    expected = both(plain, x, s, shift)
    assert (expected[0] == 6).any(), "no value reaches the end"
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
