"""The examples of docs/examples: as a page shows them, and registered as if they stood in the package."""

import importlib.util
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from fss_svf import plugins
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"


def blocks(page, language):
    """The code blocks of this language in the text of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def commands_of(page, smaller):
    """The commands of a page, each as its verb and its arguments. `smaller` gives each verb, in the page's order, overrides
    that take the place of the page's."""
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("fss-svf ")]
    assert [verb for verb, *_ in commands] == list(smaller)
    for verb, *overrides in commands:
        keys = {override.split("=")[0] for override in smaller[verb]}
        yield verb, [verb, *(o for o in overrides if o.split("=")[0] not in keys), *smaller[verb]]


@contextmanager
def registered(registry, name):
    """docs/examples/NAME.py, registered within the context only: other tests ask for a YAML of everything registered."""
    names = registry.names()  # imports the others first, which would be forgotten with the copy
    with pytest.MonkeyPatch.context() as patch:
        # Without one of this name: the example may have been copied in.
        patch.setattr(registry, "_entries", {k: v for k, v in registry._entries.items() if k != name})
        for state in ("_named", "_failed"):  # a checkpoint names the example's module as its plugin
            patch.setattr(plugins, state, dict(getattr(plugins, state)))
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their annotations up there
        patch.setattr(plugins, "_named", dict(plugins._named))  # a checkpoint of the example names it
        spec.loader.exec_module(module)
        yield module
    assert registry.names() == names


@contextmanager
def plugins_apart(*modules):
    """Plugins that are named or installed within the context are forgotten behind it, as are modules that begin so."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (METHODS, BACKBONES, TUNINGS, DATASETS):
            registry.names()
            patch.setattr(registry, "_entries", dict(registry._entries))
        for state in ("_named", "_failed"):
            patch.setattr(plugins, state, {})
        plugins.installed.cache_clear()
        yield patch
    plugins.installed.cache_clear()
    plugins._with_distribution.cache_clear()
    for name in [name for name in sys.modules if name.startswith(modules)]:
        del sys.modules[name]
