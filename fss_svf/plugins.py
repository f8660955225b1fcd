"""Plugins: modules of other packages that bring methods, backbones, tunings and datasets, and the YAML of these.

A plugin is an importable module. Importing it registers its components (registry.py). A folder `conf` beside its file joins
the config tree (conf_files.py). It is named in one of two ways:

    [project.entry-points."fss_svf.plugins"]    in the pyproject.toml of its package: found wherever that is installed
    example = "fss_svf_example"

    fss-svf train plugins=[fss_svf_example] ... for one run

Nothing is imported before the first look-up of a name. Python must find the module in every process: it is installed, or
its folder is in PYTHONPATH.
"""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fss_svf.errors import PluginError

log = logging.getLogger(__name__)
GROUP = "fss_svf.plugins"

# Plugins that a command or a checkpoint names, and imports that failed, by module.
_named: dict[str, Plugin] = {}
_failed: dict[str, PluginError] = {}


@dataclass(frozen=True)
class Plugin:
    """A module, and the distribution it was installed with where that is known."""

    module: str
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        return f"plugin {self.module} ({self.source})"

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return f"{self.distribution} {self.version}" if self.distribution else "of no installed package"


@cache
def installed() -> tuple[Plugin, ...]:
    """The plugins that installed packages announce by an entry point, by module."""
    entries = {entry.module: entry for entry in metadata.entry_points(group=GROUP)}
    found = []
    for module, entry in sorted(entries.items()):
        of = entry.dist
        found.append(Plugin(module, of.name, of.version) if of is not None else Plugin(module))
    return tuple(found)


def known() -> list[Plugin]:
    """Installed plugins, then those named by a command or a checkpoint."""
    return list({**{plugin.module: plugin for plugin in installed()}, **_named}.values())


def add(modules: Iterable[str], what: str = "plugins") -> None:
    """Make modules plugins of this process. Raises PluginError, which begins with `what`, where Python does not find one."""
    for module in modules:
        if module in {plugin.module for plugin in known()}:
            continue
        if not all(part.isidentifier() for part in module.split(".")):
            raise PluginError(
                f"{what}: {module!r} is no name of a module; write it as in an import statement, without .py"
            )
        if not _exists(module):
            raise PluginError(f"{what}: Python finds no module {module!r}; {_get(module)}")
        _named[module] = Plugin(module)


def load() -> None:
    """Import every known plugin, once a process. Raises PluginError for the first that fails, at each call."""
    for plugin in known():
        failure = load_one(plugin)
        if failure is not None:
            raise failure


def load_one(plugin: Plugin) -> PluginError | None:
    """Import a plugin; what to say where that fails."""
    if plugin.module not in _failed and plugin.module not in sys.modules:
        try:
            if not _exists(plugin.module):
                raise PluginError(f"{plugin}: Python finds no module {plugin.module!r}; {_leave_out(plugin)}")
            importlib.import_module(plugin.module)
        except PluginError as error:
            _failed[plugin.module] = error
        except Exception as error:  # whatever its code does
            failure = PluginError(f"{plugin}: cannot be imported ({_cause(error)}); mend it, {_leave_out(plugin)}")
            failure.__cause__ = error
            _failed[plugin.module] = failure
    return _failed.get(plugin.module)


def conf_folder(plugin: Plugin) -> Path | None:
    """The folder `conf` beside the module's file; None without one. The module itself is not imported."""
    try:
        spec = find_spec(plugin.module)
    except Exception:  # of a package above the module, which load_one() tells
        return None
    if spec is None:
        return None
    places = spec.submodule_search_locations or ([str(Path(spec.origin).parent)] if spec.origin else [])
    return next((Path(place) / "conf" for place in places if (Path(place) / "conf").is_dir()), None)


def plugin_of(module: str) -> Plugin | None:
    """The plugin to which a component of this module belongs; None for the modules of fss_svf.

    A module of no known plugin, which a script has imported by itself, is its own.
    """
    if _top(module) == "fss_svf" or module == "__main__":
        return None
    plugins = {plugin.module: plugin for plugin in known()}
    above = module.split(".")
    for parts in range(len(above), 0, -1):  # the plugin itself, or the nearest package above
        if (found := plugins.get(".".join(above[:parts]))) is not None:
            return found
    return next((p for p in plugins.values() if _top(p.module) == _top(module)), Plugin(module))


def records(modules: Iterable[str]) -> list[dict[str, str | None]]:
    """What a checkpoint keeps of the plugins that own these modules: module, distribution, version, each once."""
    found = dict.fromkeys(plugin_of(module) for module in modules)
    return [asdict(_with_distribution(plugin)) for plugin in found if plugin is not None]


def imported() -> list[str]:
    """The modules of the known plugins that this process has imported."""
    return [plugin.module for plugin in known() if plugin.module in sys.modules]


def require(kept: Sequence[Mapping[str, str | None]], what: str) -> None:
    """Add the plugins that `what`, a checkpoint, was made with (see `records`). Warns of another version.

    Raises PluginError where one is missing here.
    """
    for record in kept:
        module = str(record["module"])
        then = Plugin(module, record["distribution"], record["version"])
        if not _exists(module):
            raise PluginError(
                f"{what}: was made with the {then}, which Python does not find here; {_get(module, then)}"
            )
        if module not in {plugin.module for plugin in known()}:
            log.info("%s: imports the %s", what, then)
        add([module], what)
        now = _with_distribution(next(plugin for plugin in known() if plugin.module == module))
        if then.version != now.version:
            log.warning(
                "%s: was made with version %s of plugin %s, here is %s", what, then.version, module, now.version
            )


def _exists(module: str) -> bool:
    """Whether Python finds the module. Packages above it are imported."""
    if module in sys.modules:
        return True
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError as error:  # of a package above it, or of something that it imports
        return not module.startswith(f"{error.name}.")
    except Exception:  # of a package above it; load_one() tells
        return True


@cache
def _with_distribution(plugin: Plugin) -> Plugin:
    """The plugin with the distribution that has its module, where there is one."""
    if plugin.distribution is not None:
        return plugin
    of = metadata.packages_distributions().get(_top(plugin.module))
    if of:
        return Plugin(plugin.module, of[0], metadata.version(of[0]))
    version = getattr(sys.modules.get(plugin.module), "__version__", None)
    return Plugin(plugin.module, None, None if version is None else str(version))


def _get(module: str, plugin: Plugin | None = None) -> str:
    """How to make Python find a module."""
    if plugin is not None and plugin.distribution is not None:
        install = f"pip install {plugin.distribution}=={plugin.version}"
    else:
        install = "install its package"
    return f"{install}, or put the folder that holds {_top(module)} into PYTHONPATH"


def _cause(error: Exception) -> str:
    """An error of a plugin's code in one line, with its place."""
    if isinstance(error, SyntaxError):
        text, file, line = error.msg, error.filename, error.lineno
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text, file, line = " ".join(str(error).split()), last.filename, last.lineno
    return f"{type(error).__name__}: {text}; {file}, line {line}"


def _leave_out(plugin: Plugin) -> str:
    if plugin.distribution is not None:
        return f"or uninstall it: pip uninstall {plugin.distribution}"
    return f"or leave {plugin.module} out of plugins=[...]"


def _top(module: str) -> str:
    return module.split(".")[0]
