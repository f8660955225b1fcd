"""dataset.train_fraction: a part of the images to train on."""

from dataclasses import replace
from math import ceil

import numpy as np
import pytest

from fss_svf.config import from_mapping, to_mapping
from fss_svf.data.dataset import DatasetOptions
from fss_svf.data.fold import Fold
from fss_svf.data.partition import part_of_images
from fss_svf.errors import ConfigError, DataError
from fss_svf.evaluation.subject import _options
from fss_svf.registry import DATASETS, Choice
from fss_svf.training.data_seen import data_hash
from fss_svf.training.train import train
from tests.conftest import toy_options
from tests.data.test_episodes import MIN_AREA, crowded_index, index_of, options
from tests.training.test_training import train_config


def fold_of(tmp_path, fraction, number=0, **changes):
    chosen = options(tmp_path, filter_novel=False, train_fraction=fraction, **changes)
    return Fold(chosen, [f"class{c}" for c in range(1, 21)], number)


def test_parts_have_their_share_and_lie_within_each_other(tmp_path):
    index = crowded_index()
    listed = fold_of(tmp_path, 1.0).listed(index, "train")
    parts = {f: fold_of(tmp_path, f).listed(index, "train") for f in (0.1, 0.25, 0.5, 1.0)}
    for fraction, part in parts.items():
        assert ceil(fraction * listed.sum()) <= part.sum() <= ceil(fraction * listed.sum()) + 15 * 6
        of_class = index.areas[:, 6:] >= MIN_AREA
        assert ((of_class & part[:, None]).sum(0) >= np.minimum(6, of_class.sum(0))).all()
        assert not (part & ~listed).any()
    assert not (parts[0.1] & ~parts[0.25]).any()
    assert not (parts[0.25] & ~parts[0.5]).any()
    assert np.array_equal(parts[1.0], listed)
    # The tested images are all there.
    assert fold_of(tmp_path, 0.1).usable(index, "val").all()


def test_a_part_follows_the_names_alone():
    names = [f"{n:04d}" for n in range(200)]
    every = np.ones((200, 1), bool)
    part = set(np.array(names)[part_of_images(names, every, 0.25)])
    assert len(part) == 50
    assert sorted(part)[:6] == ["0004", "0005", "0008", "0010", "0013", "0014"]  # no later version may draw others
    assert set(np.array(names[::-1])[part_of_images(names[::-1], every, 0.25)]) == part
    # Of images that are not listed the part has its share too.
    even = np.arange(200) % 2 == 0
    part = part_of_images(names, even[:, None], 0.5)
    assert part[even].sum() == 50
    assert 30 < part[~even].sum() < 70


def test_a_part_keeps_six_images_of_a_rare_class():
    names = [f"{n:04d}" for n in range(200)]
    listed = np.zeros((200, 3), bool)
    listed[:, 0] = True
    listed[190:, 1] = True  # ten
    listed[[3, 4], 2] = True
    parts = [part_of_images(names, listed, fraction) for fraction in (0.01, 0.1, 0.5)]
    assert [listed[part].sum(0)[1:].tolist() for part in parts[:2]] == [[6, 2], [6, 2]]
    assert 2 <= parts[0].sum() <= 6 + 6 + 2
    assert 20 <= parts[1].sum() <= 20 + 6 + 2
    assert not (parts[0] & ~parts[1]).any()
    assert not (parts[1] & ~parts[2]).any()
    assert not part_of_images(names[:5], np.zeros((5, 2), bool), 0.5).sum() < 5  # nothing is listed: nothing to part


def test_episodes_are_of_the_part_alone(tmp_path):
    index = crowded_index()
    fold = fold_of(tmp_path, 0.5)
    kept, sampler = fold.usable(index, "train"), fold.sampler(index, "train", 1, 0, "shuffled_epochs")
    used = {i for n in range(400) for i in (sampler[n].query, *sampler[n].supports)}
    assert kept[list(used)].all()
    assert len(sampler) == fold.listed(index, "train").sum()


@pytest.mark.parametrize("too_few_images", ["error", "skip"])
def test_a_class_that_the_part_loses_is_an_error(tmp_path, too_few_images):
    """6-shot episodes need seven images: class 6 has eight, of which the part keeps six; class 7 has one in the whole."""
    many = [{8: MIN_AREA} for _ in range(60)]
    index = index_of(*many, *[{6: MIN_AREA}] * 8, {7: MIN_AREA}, classes=20)
    arguments = (index, "train", 6, 0, "shuffled_epochs")
    whole = fold_of(tmp_path, 1.0, too_few_images="skip").sampler(*arguments, (6, 7, 8))
    assert whole.skipped == (7,)
    fold = fold_of(tmp_path, 0.2, too_few_images=too_few_images)
    with pytest.raises(DataError, match=r"train_fraction=0\.2.*class6") as error:
        fold.sampler(*arguments, (6, 7, 8))
    if too_few_images == "skip":  # what the whole lacks is left out as ever
        assert "class7" not in str(error.value)
        assert fold.sampler(*arguments, (7, 8)).skipped == (7,)
    # With five shots the part has enough.
    assert 6 in fold_of(tmp_path, 0.01, too_few_images="skip").sampler(index, "train", 5, 0, "random", (6, 8)).classes


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_a_fraction_that_is_none(tmp_path, fraction):
    with pytest.raises(ConfigError, match=r"^train_fraction: expected a fraction above 0, at most 1"):
        options(tmp_path, train_fraction=float(fraction))


def test_a_run_says_which_part(toy_root, tmp_path):
    whole = train_config(toy_root, "frozen")
    part = replace(whole, dataset=Choice("toy", toy_options(toy_root, train_fraction=0.5)))
    index = DATASETS.build(whole.dataset).split("train").index
    hashes = [data_hash(config.dataset.options, index) for config in (whole, part)]
    assert hashes[0] == index.hash
    assert hashes[1] != index.hash
    assert "dataset.train_fraction" not in _options(whole)  # as in results of before the key
    assert _options(part)["dataset.train_fraction"] == 0.5
    train(part, tmp_path / "run")
    longer = replace(part, recipe=replace(part.recipe, max_steps=5), resume=tmp_path / "run")
    train(longer, tmp_path / "run")
    other = replace(longer, dataset=whole.dataset)
    with pytest.raises(DataError, match="resume: the run began on an index"):
        train(other, tmp_path / "run")


def test_a_config_of_before_there_were_parts(tmp_path):
    values = to_mapping(options(tmp_path))
    del values["train_fraction"]
    assert from_mapping(DatasetOptions, values).train_fraction == 1
