"""The examples of docs/examples: as a page shows them, and registered as if they stood in the package."""

import importlib.util
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"


def blocks(page, language):
    """The code blocks of this language in the text of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


@contextmanager
def registered(registry, name):
    """docs/examples/NAME.py, registered within the context only: other tests ask for a YAML of everything registered."""
    names = registry.names()  # imports the others first, which would be forgotten with the copy
    with pytest.MonkeyPatch.context() as patch:
        # Without one of this name: the example may have been copied in.
        patch.setattr(registry, "_entries", {k: v for k, v in registry._entries.items() if k != name})
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their annotations up there
        spec.loader.exec_module(module)
        yield module
    assert registry.names() == names
