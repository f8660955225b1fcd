"""How fss_svf.svf computes and keeps factors: the two routes of the SVD, and the cache on disk."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fss_svf import svf
from fss_svf.svf import cache as cache_module
from fss_svf.svf.factors import by_gram, svd
from tests.svf.test_svf import image, net, same, snapshot

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread", "seeded")]


def with_spectrum(rows: int, columns: int, s: Tensor) -> Tensor:
    """(1, rows, columns) in float32 with these singular values."""
    u = torch.linalg.qr(torch.randn(rows, len(s), dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, len(s), dtype=torch.float64))[0]
    return ((u * s.double()) @ v.T)[None].float()


def assert_accurate(matrices: Tensor, factors: tuple[Tensor, Tensor, Tensor], rebuilt: float) -> None:
    u, s, vh = (value[0].double() for value in factors)
    eye = torch.eye(len(s), dtype=torch.float64)
    assert float((u.T @ u - eye).abs().max()) < 1e-5
    assert float((vh @ vh.T - eye).abs().max()) < 1e-5
    assert float(((u * s) @ vh - matrices[0]).norm() / matrices.norm()) < rebuilt
    expected = torch.linalg.svdvals(matrices[0].double())
    assert torch.allclose(s, expected, rtol=1e-4, atol=3e-6 * float(expected[0]))
    assert (s[:-1] >= s[1:]).all()


SHAPES = [(64, 64), (32, 288), (256, 64), (1, 9), (9, 1)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("smallest", [1.0, 1e-2, 3e-5])
def test_the_gram_route_is_more_accurate_than_asked(rows: int, columns: int, smallest: float) -> None:
    matrices = with_spectrum(
        rows, columns, torch.logspace(0, float(torch.tensor(smallest).log10()), min(rows, columns))
    )
    found = by_gram(matrices)
    assert found is not None
    assert_accurate(matrices, found, rebuilt=1e-6)
    assert all(value.dtype == torch.float32 for value in found)


@pytest.mark.parametrize(("rows", "columns"), SHAPES[:3])
@pytest.mark.parametrize("smallest", [0.0, 1e-7])
def test_small_and_zero_singular_values_go_the_usual_way(rows: int, columns: int, smallest: float) -> None:
    s = torch.linspace(1, 0.1, min(rows, columns))
    s[-3:] = smallest
    matrices = with_spectrum(rows, columns, s)
    matrices[:, rows // 2] *= float(smallest > 0)  # a dead filter has a row of zeros
    assert by_gram(matrices) is None
    assert_accurate(matrices, svd(matrices), rebuilt=1e-5)


def test_zeros_float64_and_groups_go_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_gram(torch.zeros(1, 4, 5)) is None
    monkeypatch.setattr("fss_svf.svf.factors.by_gram", lambda matrices: pytest.fail("not for these"))
    svd(torch.randn(1, 4, 5, dtype=torch.float64))
    svd(torch.randn(3, 4, 5))


# The cache


def factors_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_is_cached_is_what_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained, x = net(), image()
    before, state = pretrained(x), pretrained.state_dict()
    models = []
    for cache in (None, tmp_path / "new" / "folder", str(tmp_path / "new" / "folder")):
        if cache and models[1:]:
            monkeypatch.setattr("fss_svf.svf.cache.svd", lambda matrices: pytest.fail("it was computed before"))
        model = net()
        model.load_state_dict(state)
        models.append(svf.decompose(model, cache=cache))
        assert torch.equal(model(x), before)
        if cache:
            assert len(factors_of(tmp_path / "new" / "folder")) == 3
    assert same(snapshot(models[0]), snapshot(models[1]))
    assert same(snapshot(models[1]), snapshot(models[2]))


def test_a_file_serves_every_rank_and_form_and_half_precision_has_its_own(tmp_path: Path) -> None:
    layer = nn.Linear(6, 5)
    state = layer.state_dict()
    for arguments in ({}, {"rank": 2}, {"rank": "energy:0.5"}, {"train": "U", "parametrisation": "log"}):
        layer = nn.Linear(6, 5)
        layer.load_state_dict(state)
        svf.decompose(layer, cache=tmp_path, **arguments)
    assert len(factors_of(tmp_path)) == 1
    layer = nn.Linear(6, 5)
    layer.load_state_dict(state)
    assert svf.decompose(layer.double(), cache=tmp_path).U.dtype == torch.float64
    assert len(factors_of(tmp_path)) == 2


def test_other_weights_and_other_groups_are_other_files(tmp_path: Path) -> None:
    a, b, c = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        b.weight.copy_(a.weight)
        c.weight.copy_(a.weight)
        c.weight[0, 0] += 1e-6
    for layer in (a, b, c):
        svf.decompose(layer, cache=tmp_path)
    assert len(factors_of(tmp_path)) == 3


def damage(kind: str, path: Path) -> None:
    whole = path.read_bytes()
    if kind == "another weight's factors":
        save_file({n: torch.zeros(1, 2, 2) for n in ("U", "S", "Vh")}, path, metadata={"format": "fss-svf factors 1"})
    elif kind == "one tensor missing":
        save_file({"U": torch.zeros(1)}, path)
    else:
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        path.write_bytes({"empty": b"", "cut off": whole[:-5], "noise": b"\xff" * 100, "one bit": flipped}[kind])


@pytest.mark.parametrize(
    "kind", ["empty", "cut off", "noise", "one bit", "another weight's factors", "one tensor missing"]
)
def test_a_damaged_file_is_computed_anew_with_a_warning(tmp_path: Path, kind: str) -> None:
    layer = nn.Linear(6, 5)
    state = layer.state_dict()
    expected = snapshot(svf.decompose(layer, cache=tmp_path))
    (path,) = factors_of(tmp_path)
    damage(kind, path)
    again = nn.Linear(6, 5)
    again.load_state_dict(state)
    with pytest.warns(UserWarning, match=f"{path.name}: a damaged file"):
        svf.decompose(again, cache=tmp_path)
    assert same(snapshot(again), expected)
    assert factors_of(tmp_path) == [path]
    assert cache_module._read(path) is not None  # and mended


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="could not be cached"):
        svf.decompose(nn.Linear(3, 3), cache=tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_oldest_files_go_when_there_are_too_many_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "someone's file").write_bytes(bytes(5000))
    svf.decompose(nn.Linear(20, 20), cache=tmp_path)
    (first,) = (p for p in factors_of(tmp_path) if p.suffix)
    monkeypatch.setattr(cache_module, "LIMIT_BYTES", int(2.5 * first.stat().st_size))
    kept = []
    for age in (3, 2, 1):
        layer = nn.Linear(20, 20)
        svf.decompose(layer, cache=tmp_path)
        new = max((p for p in factors_of(tmp_path) if p.suffix), key=lambda p: p.stat().st_mtime_ns)
        kept.append(new)
        os.utime(new, (10_000 - age, 10_000 - age))
    left = {p.name for p in factors_of(tmp_path)}
    assert "someone's file" in left
    assert len(left) == 3
    assert kept[-1].name in left


def test_where_factors_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert svf.default_cache() is None  # the tests' own setting
    monkeypatch.setenv("FSS_SVF_CACHE", "~/mine")
    assert svf.default_cache() == Path.home() / "mine"
    monkeypatch.delenv("FSS_SVF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert svf.default_cache() == Path("/cache/fss-svf/factors")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert svf.default_cache() == Path.home() / ".cache" / "fss-svf" / "factors"


def test_a_model_without_values_writes_nothing(tmp_path: Path) -> None:
    with torch.device("meta"):
        svf.decompose(net(), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
