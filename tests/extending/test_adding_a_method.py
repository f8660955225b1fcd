"""The example of docs/adding_a_method.md: it is the page's, it keeps the seam's promises, and its commands work."""

import dataclasses
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from fss_svf.config import from_mapping
from fss_svf.data.fold import Fold
from fss_svf.data.loading import TrainEpisodes, collate_episodes
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import build_model
from fss_svf.registry import DATASETS, METHODS, Choice
from fss_svf.training.optim import make_optimizer
from tests.conftest import TOY
from tests.examples import DOCS, EXAMPLES, blocks, commands_of, plugins_apart
from tests.examples import registered as registered_example
from tests.methods import test_methods
from tests.training.test_training import changed_by_training, steps, train_config

PAGE = (DOCS / "adding_a_method.md").read_text()
NAME = "nearest_prototype"
CODE, YAML = (EXAMPLES / f"{NAME}.{ending}" for ending in ("py", "yaml"))


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The example, for this module only."""
    with registered_example(METHODS, NAME):
        yield


def options():
    return METHODS.entry(NAME).options


def test_the_page_shows_the_files_in_full():
    assert blocks(PAGE, "python") == [CODE.read_text()]
    assert blocks(PAGE, "yaml") == [YAML.read_text()]
    assert len(CODE.read_text().splitlines()) < 60


def test_the_page_names_every_optional_member():
    table = set(re.findall(r"^\| `(\w+)", PAGE, flags=re.MULTILINE))
    theirs = {name for name in vars(FewShotMethod) if not name.startswith("_")} - {"train"}
    assert theirs <= table


def test_its_yaml_holds_its_options_and_their_defaults():
    values = yaml.safe_load(YAML.read_text())
    assert values.pop("name") == NAME
    assert set(values) == {f.name for f in dataclasses.fields(options())}
    assert from_mapping(options(), values) == options()()


@pytest.mark.parametrize("shot", [1, 5])
def test_encoding_apart_equals_forward(shot):
    test_methods.test_encoding_apart_equals_forward(NAME, "tiny", shot)


def test_it_keeps_the_promises_of_every_method():
    test_methods.test_an_episode_does_not_see_its_batch(NAME)
    test_methods.test_shots_have_no_order(NAME)
    for value in (0, 255):
        test_methods.test_an_empty_support_mask_gives_finite_logits(NAME, value)


@pytest.mark.parametrize("tuning", ["frozen", "svf", "full", "adapter"])
def test_its_loss_falls(toy_root, tuning):
    """On four episodes again and again: the loss of new ones says more of them than of so short a training."""
    config = train_config(toy_root, tuning, method=Choice(NAME, options()(width=16)))
    split = DATASETS.build(config.dataset).split("train")
    sampler = Fold(config.dataset.options, split.index.class_names, 0).sampler(
        split.index, "train", 1, config.seed, "shuffled_epochs"
    )
    draw = TrainEpisodes(split, sampler, config.recipe.size, config.recipe.augment)
    batch = collate_episodes([draw(number) for number in range(4)]).normalized()
    torch.manual_seed(config.seed)
    model = build_model(config.method, config.backbone, config.tuning)[0].train()
    optimizer = make_optimizer(model, model.backbone, replace(config.recipe.optimizer, name="adamw"))
    losses = steps(model, batch, optimizer, 30)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("tuning", ["frozen", "svf", "full", "adapter"])
def test_it_trains_and_is_restored(toy_root, tmp_path, tuning):
    config = train_config(toy_root, tuning, method=Choice(NAME, options()(width=16)))
    assert {"project.weight", "scale"} <= changed_by_training(config, tmp_path)


@pytest.fixture
def mine(tmp_path):
    """The folder of the page, on Python's path; the example is the plugin alone."""
    folder = tmp_path / "mine"
    (folder / "conf" / "method").mkdir(parents=True)
    shutil.copy(CODE, folder)
    shutil.copy(YAML, folder / "conf" / "method")
    with plugins_apart(NAME) as patch:
        METHODS._entries.pop(NAME)
        patch.syspath_prepend(folder)
        yield folder


def test_the_commands_of_the_page(fss, toy_root, mine):
    """Each as it stands there, with fewer and smaller steps on the small toy dataset."""
    here = [o for o in TOY if o != "dataset=toy"] + [f"dataset.root={toy_root}"]
    few = ["recipe.max_steps=2", "recipe.size=65", "recipe.batch_size=2", "backbone.width=8", "workers=0"]
    smaller = {
        "prepare": [*here, "workers=0"],
        "pretrain": [*here, *few, "validate_every=2"],
        "train": [*here, *few, "validate.every=2", "validate.episodes=4"],
        "evaluate": ["protocol.episodes=60", "workers=0", "pictures=0"],
        "report": [],
    }
    for _, command in commands_of(PAGE, smaller):
        status, out, err = fss(*command)
        assert status == 0, (command, err)
    assert len([line for line in out.splitlines() if line.startswith(f"| {NAME} ")]) == 1
