"""What a test of an expected failure asks of its message."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fss_svf.errors import DataError


@contextmanager
def data_error(*words):
    """The block raises a DataError whose message is one line that holds every word. Gives an object with `message`."""
    result = SimpleNamespace()
    with pytest.raises(DataError) as caught:
        yield result
    result.message = str(caught.value)
    assert "\n" not in result.message
    for word in words:
        assert str(word) in result.message
