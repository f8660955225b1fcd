"""Names that a configuration may choose: datasets, backbones, methods, tunings.

A component registers itself under a name together with the dataclass of its options:

    @METHODS.register("baseline", BaselineOptions)
    class Baseline(FewShotMethod): ...

The folder of a registry is imported at the first look-up, so that a new file in it is found without being listed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fss_svf.errors import ConfigError, did_you_mean, listing

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Choice:
    """What a config group chose: the registered name and its options (an instance of the registered dataclass)."""

    name: str
    options: Any


@dataclass(frozen=True)
class Entry:
    build: Callable[..., Any]
    options: type


class Registry:
    """The named components of one kind. `kind` is the config group; `package` the folder they live in."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry] = {}
        self._imported = False

    def register(self, name: str, options: type) -> Callable[[T], T]:
        """Decorator: make the decorated class or function known as `name`, configured by the dataclass `options`."""

        def add(build: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._entries[name].build} and {build}")
            self._entries[name] = Entry(build, options)
            return build

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._import_all()
        return sorted(self._entries)

    def entry(self, name: str) -> Entry:
        """The component of this name. Raises ConfigError with the known names."""
        self._import_all()
        if name not in self._entries:
            known = self.names()
            raise ConfigError(f"{self.kind}={name}: unknown{did_you_mean(name, known)}; known: {listing(known, 20)}")
        return self._entries[name]

    def build(self, choice: Choice, *args: Any) -> Any:
        """Call the chosen component with `args` and its options."""
        return self.entry(choice.name).build(*args, choice.options)

    def _import_all(self) -> None:
        if not self._imported:
            self._imported = True
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")


DATASETS = Registry("dataset", "fss_svf.data")
BACKBONES = Registry("backbone", "fss_svf.backbones")
METHODS = Registry("method", "fss_svf.methods")
TUNINGS = Registry("tuning", "fss_svf.tuning")
