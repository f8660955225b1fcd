"""Plain mappings to checked dataclasses and back.

A key that no dataclass declares, a missing key and a value of the wrong type are errors that name the key.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from fss_svf import plugins
from fss_svf.errors import ConfigError, did_you_mean
from fss_svf.registry import Choice, Registry

T = TypeVar("T")


def from_mapping(cls: type[T], values: object, where: str = "") -> T:
    """Build the dataclass `cls` from a plain mapping, checking keys and types all the way down.

    `where` is the key under which `values` stands, for messages. Raises ConfigError, and PluginError where a plugin that the
    key `plugins` names, or one that is installed, cannot be used.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'config'}: expected a mapping of keys, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{_join(where, str(key))}: no such key{did_you_mean(str(key), fields)}")
    if "plugins" in fields and "plugins" in values:  # before the keys that may choose what they bring
        plugins.add(_convert(hints["plugins"], values["plugins"], _join(where, "plugins")))
    arguments = {}
    # Components last: to know their options, their modules are imported, PyTorch with them.
    for name, f in sorted(fields.items(), key=lambda item: "registry" in item[1].metadata):
        key = _join(where, name)
        if name in values:
            arguments[name] = _convert(hints[name], values[name], key, f.metadata.get("registry"))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{key}: missing; it has no default")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}" if where else str(error)) from None


def to_mapping(config: Any) -> Any:
    """The inverse of from_mapping: nested plain dicts, lists and scalars, ready for YAML, JSON or a checkpoint."""
    if isinstance(config, Choice):
        return {"name": config.name, **to_mapping(config.options)}
    if dataclasses.is_dataclass(config):
        return {f.name: to_mapping(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, Mapping):
        return {str(key): to_mapping(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_mapping(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def modules_of(config: Any) -> list[str]:
    """The modules of a config's components, and those that its key `plugins` names: what a run of it must import."""
    modules = list(config.plugins)
    for f in dataclasses.fields(config):
        choice, registry = getattr(config, f.name), f.metadata.get("registry")
        if registry is not None and isinstance(choice, Choice):
            modules.append(registry.modules()[choice.name])
    return modules


def group(registry: Registry) -> Any:
    return field(metadata={"registry": registry})


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _convert(kind: Any, value: Any, key: str, registry: Registry | None = None) -> Any:
    """`value` as the annotated type `kind`, or ConfigError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, key, registry)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key}: expected one of {' | '.join(map(str, arguments))}, got {value!r}")
        return value
    if kind is Choice:
        return _choice(value, key, registry)
    if dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, key)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key}: expected a list, got {value!r}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ConfigError(f"{key}: expected {len(arguments)} values, got {value!r}")
        element = arguments if arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        return tuple(_convert(e, v, f"{key}[{i}]") for i, (e, v) in enumerate(zip(element, value)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected a mapping of keys, got {value!r}")
        return {str(k): _convert(arguments[1], v, _join(key, str(k))) for k, v in value.items()}
    return _scalar(kind, value, key)


def _convert_union(kinds: tuple[Any, ...], value: Any, key: str, registry: Registry | None) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in (k for k in kinds if k is not type(None)):
        try:
            return _convert(kind, value, key, registry)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _choice(value: Any, key: str, registry: Registry | None) -> Choice:
    assert registry is not None, f"{key}: a Choice field names its registry in its metadata"
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(f"{key}: nothing chosen; say {registry.kind}=NAME with one of {', '.join(registry.names())}")
    entry = registry.entry(value["name"])
    return Choice(value["name"], from_mapping(entry.options, {k: v for k, v in value.items() if k != "name"}, key))


def _scalar(kind: type, value: Any, key: str) -> Any:
    if kind is Path and isinstance(value, (str, Path)):
        # Absolute, so that a run's config means the same from another folder.
        return Path(value).expanduser().absolute()
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", Path: "a path"}
    raise ConfigError(f"{key}: expected {names.get(kind, kind.__name__)}, got {value!r}")
