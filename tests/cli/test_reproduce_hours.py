"""fss-svf reproduce device_model=...: hours of trainings before any ran, against arithmetic written out here."""

import logging
from math import sqrt
from types import SimpleNamespace

import pytest
import torch

from fss_svf.conf_files import conf_dir
from fss_svf.data.fold import Fold
from fss_svf.errors import ConfigError
from fss_svf.registry import DATASETS
from fss_svf.reproduction import hours as hours_module
from fss_svf.reproduction.hours import device_models, estimated_hours, training_steps
from fss_svf.reproduction.jobs import make_jobs
from fss_svf.reproduction.operations import operations
from fss_svf.reproduction.plan import Estimate, plan_table
from tests.cli.test_config import compose
from tests.cli.test_reproduce import wanted
from tests.conftest import TOY

# Dense TFLOP/s in half precision, tf32 and float32, and TB/s, of NVIDIA's data sheets.
SHEETS = {
    "a100": (312, 156, 19.5, 2.039), "h100": (989, 495, 67, 3.35), "h200": (989, 495, 67, 4.8),
    "l40s": (362, 183, 91.6, 0.864), "rtx3090": (71, 35.6, 35.6, 0.936), "rtx4090": (165.2, 82.6, 82.6, 1.008),
}  # fmt: skip
STEP_OF_RESNET50 = 24.5e9  # 3 x 4.09 GMAC x 2


def test_the_rates_are_those_of_their_header():
    rates = device_models()
    for device, precision, images in (
        ("a100", "tf32", 938), ("a100", "bf16", 2470), ("v100", "float32", 367), ("v100", "fp16", 1200),
    ):  # fmt: skip
        assert rates[device][precision] == pytest.approx(images * STEP_OF_RESNET50 / 1e12, rel=0.02)
    assert set(rates) == {*SHEETS, "v100"}
    half, tf32, _, bandwidth = SHEETS["a100"]
    share = rates["v100"]["float32"] / 15.7
    for device, sheet in SHEETS.items():
        of = {
            "bf16": rates["a100"]["bf16"] * sqrt(sheet[0] / half * sheet[3] / bandwidth),
            "tf32": rates["a100"]["tf32"] * sqrt(sheet[1] / tf32 * sheet[3] / bandwidth),
        }
        of["fp16"], of["float32"] = of["bf16"], min(share * sheet[2], of["tf32"])
        assert rates[device] == pytest.approx(of, rel=0.04)
    text = (conf_dir() / "reproduce.yaml").read_text()
    assert all(device in text for device in rates)


@pytest.mark.parametrize(
    ("overrides", "gflops"),
    [
        # PANet has no head: a VGG16 of 417 pixels is 138 GFLOP forward, an item is two images, a backward two forwards.
        (["experiment=pascal/panet"], 2 * 3 * 138),
        # HSNet: a frozen ResNet-50 of two images, the correlations, a head that trains.
        (["experiment=pascal/hsnet", "backbone.dilation=none"], 2 * 26 + 31 + 3 * 35),
    ],
)
def test_operations_are_those_of_the_experiments_headers(overrides, gflops):
    assert operations(compose("train", *overrides)) / 1e9 == pytest.approx(gflops, rel=0.01)


def of_toy(*overrides):
    return operations(compose("train", *TOY, "backbone=tiny", "backbone.width=8", "recipe=toy", *overrides))


def test_other_models_are_counted_too():
    """Base labels, buffers that are made on the CPU, several classes at once, a backbone that runs again in the backward."""
    assert of_toy("method=bam", "tuning=svf") > 0
    two, one = of_toy("method=panet", "tuning=full", "way=2"), of_toy("method=panet", "tuning=full")
    assert two / one == pytest.approx(3 / 2, rel=0.01)  # images
    # A third more but for the stem, whose backward is less than two forwards.
    assert 1.3 < of_toy("method=panet", "tuning=full", "recompute=true") / one < 1.45
    assert operations(compose("pretrain", *TOY, "backbone=tiny", "recipe=toy_pretrain")) > 0


def test_hours_are_steps_times_operations_over_the_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(hours_module, "operations", lambda run: 180e9 if hasattr(run, "method") else 90e9)
    (tmp_path / "none").mkdir()
    overrides = (f"dataset.root={tmp_path}/none", "precision=tf32")  # not prepared: the papers' images
    table = wanted("svf_pascal", folds=[1], shots=[5], only=("baseline", "svf", "resnet50"), overrides=overrides)
    base, train, evaluate = make_jobs(table, tmp_path)
    found = estimated_hours([base, train, evaluate], "a100")
    # 3,726 images of fold 1, in whole batches of 12 and of 8.
    assert found == {
        base: pytest.approx(100 * 3726 // 12 * 12 * 90e9 / 23e12 / 3600),
        train: pytest.approx(200 * 3726 // 8 * 8 * 180e9 / 23e12 / 3600),
    }
    lines = plan_table([base, train, evaluate], [train, evaluate], {}, 1, Estimate("a100", 2, found)).splitlines()
    assert lines[3].split("|")[-2].strip() == f"~{found[train] / 2:.1f} + 1 jobs"
    assert "'~': an estimate, not measured, for device_model=a100 in each of 2 processes" in lines[-1]
    # A finished job of the kind takes its place.
    lines = plan_table([base, train], [train], {base.name: 1.0}, 1, Estimate("a100", 1, {})).splitlines()
    assert lines[3].split("|")[-2].strip() == "0.0 + 1 jobs"


def test_measured_hours_take_the_place_of_an_estimate(tmp_path):
    jobs = [job for job in make_jobs(wanted(shots=[1], only=("baseline", "svf")), tmp_path) if job.verb == "train"]
    estimate = Estimate("h100", 1, dict.fromkeys(jobs, 50.0))
    lines = plan_table(jobs, jobs[1:], {jobs[0].name: 7200.0}, 1, estimate).splitlines()
    assert lines[2].split("|")[-2].strip() == "6.0"


def test_steps_of_prepared_data_are_those_of_a_training(toy_root):
    def run(*more):
        toy = (*TOY, f"dataset.root={toy_root}", "backbone=tiny", "recipe=toy", "method=panet", "tuning=full")
        return compose("train", *toy, "fold=2", "recipe.batch_size=4", "recipe.epochs=3", *more)

    dataset = DATASETS.build(run().dataset)
    splits = dataset.split("train"), dataset.split("val")
    index = splits[0].index
    images = int(Fold(dataset.options, index.class_names, 2).listed(index, "train").sum())
    assert training_steps(run("recipe.max_steps=null"), splits) == 3 * images // 4
    assert training_steps(run("recipe.max_steps=5"), splits) == 5
    # No paper prints the number of the toy dataset's images.
    assert training_steps(run("recipe.max_steps=5"), None) == 5
    assert training_steps(run("recipe.max_steps=null"), None) is None


def test_a_model_that_needs_values_is_left_out_with_a_line(tmp_path, monkeypatch, caplog):
    def fails(run):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(hours_module, "operations", fails)
    jobs = make_jobs(wanted(folds=[0], shots=[1], only=("pfenet", "svf"), overrides=("recipe.max_steps=2",)), tmp_path)
    with caplog.at_level(logging.WARNING):
        assert estimated_hours(jobs, "h100") == {}
    assert "pfenet-svf: its operations cannot be counted without data: Tensor.item()" in caplog.text


def test_a_wrong_device_is_one_line(fss, tmp_path):
    status, _, err = fss("reproduce", "table=toy", "plan=true", "device_model=h10")
    assert status == 1
    assert "device_model=h10: not in the table (did you mean 'h100'?); there are a100, h100, " in err
    jobs = [SimpleNamespace(config=compose("train", "experiment=toy", "precision=bf16"), group="row")]
    with pytest.raises(ConfigError, match=r"device_model=v100: no rate for precision=bf16; .* '-- precision=fp16'"):
        estimated_hours(jobs, "v100")
    assert torch.get_default_device() == torch.device("cpu")
