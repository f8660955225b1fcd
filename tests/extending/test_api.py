"""The Python API: its results are those of the command line, and docs/python.md runs as it stands."""

import csv
import json

import numpy as np
import pytest
import torch

import fss_svf
from fss_svf.errors import ConfigError, DataError, WeightsError
from fss_svf.model import build_model
from fss_svf.registry import BACKBONES, METHODS, TUNINGS, Choice
from tests.conftest import SMALL_TOY, TOY
from tests.examples import DOCS, blocks

SMALL = ("experiment=toy", *TOY, "recipe.size=65", "recipe.batch_size=2", "recipe.max_steps=2",
         "validate.every=2", "validate.episodes=4", "backbone.width=8", "method.width=8", "workers=0")  # fmt: skip


def dataset(root):
    return fss_svf.load_dataset("toy", root=root, **SMALL_TOY)


@pytest.fixture(scope="module")
def run(toy_root, tmp_path_factory):
    """The folder of a short training on the small toy dataset."""
    from fss_svf import cli

    folder = tmp_path_factory.mktemp("run") / "train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fss-svf", "train", *SMALL, f"dataset.root={toy_root}", f"hydra.run.dir={folder}"])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return folder


def counts(path):
    with open(path / "episodes.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_checkpoint_gives_the_result_of_the_command_line(fss, toy_root, run, tmp_path):
    status, _, err = fss("evaluate", f"checkpoint={run}", "shot=2", "protocol.episodes=30", "workers=0", "seeds=2",
                         "pictures=0", "hydra.run.dir=cli")  # fmt: skip
    assert status == 0, err
    episodes = fss_svf.episodes(dataset(toy_root).fold(0), "svf", 2, episodes=30, runs=2)
    result = fss_svf.evaluate(fss_svf.load_model(run), episodes, out=tmp_path / "api")
    theirs = json.loads((tmp_path / "cli" / "result.json").read_text())
    assert json.loads(json.dumps(result)) == theirs
    assert json.loads((tmp_path / "api" / "result.json").read_text()) == theirs
    assert counts(tmp_path / "api") == counts(tmp_path / "cli")


@pytest.mark.parametrize("protocol", ["svf", "hsnet"])
def test_any_callable_gives_the_counts_of_the_engine(toy_root, run, tmp_path, protocol):
    model = fss_svf.load_model(run).double()
    changes = {"never_drawn": "leave_out"}
    episodes = fss_svf.episodes(dataset(toy_root).fold(0), protocol, 2, size=65, episodes=12, runs=1, **changes)

    def plain(episode):
        double = {"query_image": episode.query_image.double(), "support_images": episode.support_images.double()}
        return model(fss_svf.Episode(support_masks=episode.support_masks, **double))

    fss_svf.evaluate(model, episodes, out=tmp_path / "seam")
    result = fss_svf.evaluate(plain, episodes, method="plain", out=tmp_path / "whole")
    assert counts(tmp_path / "whole") == counts(tmp_path / "seam")
    assert (result["method"], result["checkpoint"], result["num_episodes"]) == ("plain", None, 12)


def test_several_ways(toy_root, caplog):
    episodes = fss_svf.episodes(
        dataset(toy_root).fold(0), "panet", 2, way=2, episodes=8, runs=1, never_drawn="leave_out"
    )
    seen = []

    def background(episode):
        seen.append((episode.way, episode.support_masks.unique().tolist()))
        logits = torch.zeros(len(episode.query_image), 3, *episode.size)
        logits[:, 0] = 1
        return logits

    result = fss_svf.evaluate(background, episodes)
    assert result["miou"] == 0
    assert {way for way, _ in seen} == {2}
    assert result["way"] == 2
    assert "protocol.shots=mean: how the model combines its supports is its own matter" in caplog.text


class Fits(torch.nn.Module):
    """Learns each episode's brightness by gradient steps, in its own mode and dtype."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 1).double()
        self.dropout = torch.nn.Dropout()

    def forward(self, episode):
        assert not self.training
        weight = self.layer.weight.clone()
        with torch.enable_grad():
            weight.requires_grad_()
            logits = torch.nn.functional.conv2d(episode.support_images[:, 0], weight)
            logits.square().sum().backward()
        assert weight.grad is not None
        return self.layer(episode.query_image)


def test_a_module_is_left_as_it_was(toy_root):
    model = Fits().train()
    model.dropout.eval()
    episodes = fss_svf.episodes(dataset(toy_root).fold(0), size=65, episodes=20, runs=1, never_drawn="leave_out")
    fss_svf.evaluate(model, episodes)
    assert model.training
    assert model.layer.training
    assert not model.dropout.training
    assert model.layer.weight.requires_grad


def test_a_model_whose_base_learner_is_unknown(toy_root):
    """As load_official gives it: its base classes are not measured, and a protocol that fuses them is refused."""
    tiny = Choice("tiny", BACKBONES.entry("tiny").options(width=8))
    bam = Choice("bam", METHODS.entry("bam").options(width=8, shot=1, base_classes=15))
    model, _ = build_model(bam, tiny, Choice("frozen", TUNINGS.entry("frozen").options()))
    fold = dataset(toy_root).fold(0)
    episodes = fss_svf.episodes(fold, size=65, episodes=6, runs=1, never_drawn="leave_out")
    assert set(fss_svf.evaluate(model, episodes)["also"]) == {"meta"}
    with pytest.raises(
        ConfigError, match="protocol=bam_generalized: the model does not say which base classes it knows"
    ):
        fss_svf.evaluate(model, fss_svf.episodes(fold, "bam_generalized", size=65, episodes=50, runs=1))


def test_episodes_are_those_that_are_evaluated(toy_root):
    fold = dataset(toy_root).fold(1)
    assert fold.novel == list(fold.data.class_names[5:10])
    assert sorted([*fold.novel, *fold.base]) == sorted(fold.data.class_names)
    episodes = fss_svf.episodes(fold, shot=2, size=65, episodes=20, runs=2, never_drawn="leave_out")
    assert len(episodes) == len(list(episodes)) == 40
    seen = {}

    def model(episode):
        for query, supports in zip(episode.query_image, episode.support_images):
            seen[np.round(query.mean().item(), 4), np.round(supports.mean().item(), 4)] = True
        return torch.zeros(len(episode.query_image), 2, *episode.size)

    fss_svf.evaluate(model, episodes)
    one = {(np.round(e.query_image.mean().item(), 4), np.round(e.support_images.mean().item(), 4)) for e in episodes}
    assert one == set(seen)
    with pytest.raises(IndexError):
        episodes[40]


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda data, run: fss_svf.load_dataset("toi"), ConfigError, "dataset=toi: unknown (did you mean 'toy'?)"),
        (lambda data, run: fss_svf.load_dataset("toy", seeed=1), ConfigError, "dataset.seeed: no such key"),
        (lambda data, run: fss_svf.load_dataset("toy", root="gone").fold(0), DataError, "fss-svf prepare dataset=toy"),
        (lambda data, run: data.fold(4), ConfigError, "fold: expected 0..3, got 4"),
        (lambda data, run: fss_svf.episodes(data.fold(0), "svv"), ConfigError, "protocol=svv: unknown"),
        (lambda data, run: fss_svf.episodes(data.fold(0), runss=2), ConfigError, "protocol.runss: no such key"),
        (lambda data, run: fss_svf.episodes(data.fold(0), size=32), ConfigError, "size: expected at least 33"),
        (
            lambda data, run: fss_svf.evaluate(
                fss_svf.load_model(run), fss_svf.episodes(data.fold(0), size=64, episodes=50, runs=1)
            ),
            ConfigError,
            "size: expected n with (n - 1) % 8 == 0",
        ),
        (lambda data, run: fss_svf.episodes(data.fold(0), episodes=50)[0], ConfigError, "give the input's pixels"),
        (
            lambda data, run: fss_svf.evaluate(
                lambda e: e.query_image, fss_svf.episodes(data.fold(0), size=65, episodes=50, runs=1)
            ),
            ConfigError,
            "model: expected logits of (1, 2, 65, 65)",
        ),
        (
            lambda data, run: fss_svf.evaluate(fss_svf.load_model(run), fss_svf.episodes(data.fold(1), episodes=50)),
            WeightsError,
            "it has seen",
        ),
        (
            lambda data, run: fss_svf.evaluate(
                fss_svf.load_model(run), fss_svf.episodes(data.fold(0), "panet", way=2, episodes=50), way_rule="joint"
            ),
            ConfigError,
            "way_rule=joint: Baseline segments one class at a time",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(toy_root, run, wrong, error, says):
    with pytest.raises(error) as found:
        wrong(dataset(toy_root), run)
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_the_page_runs(fss, toy_root, run, tmp_path):
    """As it stands, on the small toy dataset, which is there already, and with a run of this test."""
    page = (DOCS / "python.md").read_text()
    code = "\n".join(blocks(page, "python"))
    assert len(blocks(page, "python")[0].split("class ")[1].splitlines()) < 30
    small = ", ".join(f"{key}={value}" for key, value in SMALL_TOY.items())
    code = code.replace('root="data/toy", prepare=True', f'root="{toy_root}", prepare=True, workers=0, {small}')
    code = code.replace("outputs/train/NAME/STAMP", str(run)).replace("episodes=200", "episodes=40")
    names = {"__name__": "page"}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert 0 < names["result"]["miou"] < 1
    assert len(names["ious"]) == 5
    status, out, err = fss("compare", "a=outputs/evaluate/ours", "b=outputs/evaluate/theirs")
    assert status == 0, err
    status, out, err = fss("report")
    assert status == 0, err
    assert "nearest prototype" in out
    status, _, err = fss("evaluate", f"checkpoint={run}", "protocol.episodes=40", "seeds=1", "workers=0", "pictures=0",
                         "hydra.run.dir=cli")  # fmt: skip
    assert json.loads((tmp_path / "cli" / "result.json").read_text()) == json.loads(json.dumps(names["ours"]))
