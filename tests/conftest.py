"""What several test files share."""

from contextlib import contextmanager

import pytest

from fss_svf.data.toy import Toy, ToyOptions
from fss_svf.errors import DataError


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A small toy dataset, prepared once. Tests that change files copy it first."""
    root = tmp_path_factory.mktemp("data") / "toy"
    dataset = Toy(
        ToyOptions(
            root=root,
            prepared=root / "prepared",
            class_partition="contiguous",
            min_area=200,
            filter_novel=True,
            too_few_images="error",
            train_images=120,
            val_images=60,
            seed=0,
        )
    )
    dataset.prepare(workers=0)
    return dataset


@pytest.fixture
def data_error():
    """`with data_error(word, ...)`: the block raises a DataError whose message is one line that holds every word."""

    @contextmanager
    def check(*words):
        with pytest.raises(DataError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert str(word) in message

    return check
