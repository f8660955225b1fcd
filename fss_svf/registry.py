"""Registries of the components a config can choose: datasets, backbones, methods, tunings.

A component registers itself under a name together with the dataclass of its options:

    @METHODS.register("baseline", BaselineOptions)
    class Baseline(FewShotMethod): ...

The folder of a registry is imported at the first look-up, so a new file in it needs no list to be edited. Plugins
(plugins.py) are imported after it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fss_svf import plugins
from fss_svf.errors import ConfigError, PluginError, did_you_mean, listing

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Choice:
    """The choice of a config group: a registered name and its options (an instance of the registered dataclass)."""

    name: str
    options: Any


@dataclass(frozen=True)
class Entry:
    build: Callable[..., Any]
    options: type


class Registry:
    """The named components of one kind.

    kind     the config group
    package  the folder of their modules
    classes  whether a component must be a class, whose attributes are read before it is built
    """

    def __init__(self, kind: str, package: str, classes: bool = False) -> None:
        self.kind, self._classes = kind, classes
        self._package = package
        self._entries: dict[str, Entry] = {}
        self._imported = False

    def register(self, name: str, options: type) -> Callable[[T], T]:
        """Decorator: register the class or function under `name`, configured by the dataclass `options`.

        Raises PluginError if the name is taken, or for a function where a class is needed.
        """

        def add(build: T) -> T:
            if self._classes and not isinstance(build, type):
                raise PluginError(f"{self.kind}={name}: {_origin(build)} is no class; register the {self.kind}'s class")
            if name in self._entries:
                both = f"{_origin(self._entries[name].build)} and {_origin(build)}"
                raise PluginError(
                    f"{self.kind}={name}: registered twice, by {both}; rename one, or leave its plugin out"
                )
            self._entries[name] = Entry(build, options)
            return build

        return add

    def names(self) -> list[str]:
        """All registered names, sorted; without those of plugins that cannot be imported."""
        return list(self.modules())

    def modules(self) -> dict[str, str]:
        """The names, and of each the module that its component is defined in."""
        self._import_all()
        for plugin in plugins.known():
            plugins.load_one(plugin)
        return {name: entry.build.__module__ for name, entry in sorted(self._entries.items())}

    def entry(self, name: str) -> Entry:
        """The component of this name. Raises ConfigError with the known names, PluginError for any plugin that fails."""
        self._import_all()
        plugins.load()
        if name not in self._entries:
            known = self.names()
            raise ConfigError(f"{self.kind}={name}: unknown{did_you_mean(name, known)}; known: {listing(known, 20)}")
        return self._entries[name]

    def build(self, choice: Choice, *args: Any) -> Any:
        """Call the chosen component with `args`, then its options."""
        return self.entry(choice.name).build(*args, choice.options)

    def _import_all(self) -> None:
        if not self._imported:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._imported = True


def _origin(build: Callable[..., Any]) -> str:
    """The module and name of a component, with its plugin."""
    plugin = plugins.plugin_of(build.__module__)
    return f"{build.__module__}.{build.__qualname__} ({plugin or 'of fss-svf itself'})"


DATASETS = Registry("dataset", "fss_svf.data")
BACKBONES = Registry("backbone", "fss_svf.backbones")
METHODS = Registry("method", "fss_svf.methods", classes=True)
TUNINGS = Registry("tuning", "fss_svf.tuning")
