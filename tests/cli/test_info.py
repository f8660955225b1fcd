"""info says what is there and what is not, writes nothing and never fails."""

import pytest

from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS
from tests.conftest import TOY, toy_options


def test_info_on_a_machine_without_data(fss, tmp_path, monkeypatch):
    monkeypatch.delenv("FSS_SVF_DATA", raising=False)
    status, out, err = fss("info")
    assert status == 0
    assert not err
    assert not list(tmp_path.iterdir())
    for registry in (DATASETS, METHODS, BACKBONES, TUNINGS):
        assert all(name in out for name in registry.names())
    for word in ("python", "torchvision", "cpu", "FSS_SVF_DATA", "not set", "bam_generalized", "svf_coco", "joblib",
                 "submitit", "prepare dataset=toy", "pascal/bam_svf", "data/README.md"):  # fmt: skip
        assert word in out
    wide = [line for line in out.splitlines() if len(line) > 80 and str(tmp_path) not in line]
    assert not wide


def test_info_of_a_prepared_dataset(fss, toy_root):
    status, out, _ = fss("info", *TOY, f"dataset.root={toy_root}")
    assert status == 0
    assert "ready, 180 images of train, 120 images of val" in " ".join(out.split())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "JPEGImages" / "toy_000003.jpg").unlink(), "1 files are gone: "),
        (lambda root: (root / "SegmentationClass" / "toy_000003.png").unlink(), "1 files are gone: "),
        (lambda root: (root / "prepared" / "val.npz").unlink(), "not ready; 'fss-svf prepare dataset=toy'"),
        (lambda root: (root / "prepared" / "val.npz").write_text("x"), "the index is damaged"),
        (
            lambda root: (root / "SegmentationClass" / "toy_000003.png").write_bytes(b""),
            "changed since the dataset was",
        ),
    ],
)
def test_info_of_a_spoilt_dataset(fss, tmp_path_factory, spoil, said):
    root = tmp_path_factory.mktemp("spoilt")
    options = toy_options(root, train_images=6, val_images=3)
    DATASETS.entry("toy").build(options).prepare(workers=0)
    spoil(root)
    status, out, _ = fss(
        "info",
        "dataset=toy",
        f"dataset.root={root}",
        "dataset.train_images=6",
        "dataset.val_images=3",
        f"dataset.seed={options.seed}",
    )
    assert status == 0
    assert said in " ".join(out.split())


def test_info_where_a_package_and_a_launcher_are_missing(fss, monkeypatch):
    monkeypatch.setattr("fss_svf.info._version", lambda name: None)
    monkeypatch.setattr("fss_svf.info._installed", lambda module: False)
    status, out, _ = fss("info")
    assert status == 0
    assert "not found; pip install pycocotools" in out
    assert "pip install 'fss-svf[slurm]'" in " ".join(out.split())
    assert "pip install 'fss-svf[wandb]' (logger=wandb)" in " ".join(out.split())
