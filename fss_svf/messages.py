"""Errors as one line: the problem, the file or key, and the way out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf.conf_files import conf_dir, conf_folders, options
from fss_svf.console import is_text
from fss_svf.errors import ConfigError, FssError, did_you_mean, listing
from fss_svf.overrides import PATHS, ambiguous

# System errors that only writing causes.
_OF_WRITING = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EEXIST, errno.ENOTDIR}
# Keys of paths that are written to.
_WRITTEN = ("hydra.run.dir", "hydra.sweep.dir", "out", "target", "save_support", "episodes.save", "dataset.prepared")
# Out of memory, processes or open files.
_EXHAUSTED = {errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE}

# What other frameworks call a key.
_OTHER_NAMES = {"learning_rate": "lr", "batchsize": "batch_size", "bs": "batch_size"}
# Options that a plugin may bring.
_PLUGGED = re.compile(r"Could not find '(dataset|backbone|method|tuning|protocol|recipe|experiment|table)/")


def one_line(error: BaseException, verb: str, values: Mapping[str, Any] | None = None) -> str | None:
    """The message of an error, or None for an unexpected one. values: those of the config, to name the key of a path."""
    if isinstance(error, FssError):
        return str(error)
    of_system = _behind(error)
    if of_system is not None:
        return _of_system(of_system, list(_paths(values or {})))
    if isinstance(error, UnicodeError):
        not_text = [f"{key}={path}" for key, path in _paths(values or {}) if not is_text(path)]
        return f"{not_text[0] if not_text else 'a name'}: is not UTF-8 and cannot be written here; rename it ({error})"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return of_hydra(error, verb)
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return "null is no option of a config group in a sweep, nor one that Hydra needs; leave it out"
    return None


def of_experiment(error: ConfigError, choices: Mapping[str, str | None]) -> ConfigError:
    """A key that is wrong because an experiment sets it, for another method or tuning than chosen, with the way out.

    choices: the option of every config group
    """
    key, _, problem = str(error).partition(": ")
    name, group = choices.get("experiment"), key.partition(".")[0]
    if name is None or not problem.startswith("no such key"):
        return error
    files = [folder / "experiment" / f"{name}.yaml" for folder in conf_folders()]
    sets = OmegaConf.load(next(file for file in files if file.is_file()))
    if not isinstance(sets, DictConfig) or OmegaConf.select(sets, key) is None:
        return error
    chosen = [
        f"{group_of.removeprefix('override /')}={option}"
        for default in sets.get("defaults", [])
        if isinstance(default, Mapping)
        for group_of, option in default.items()
    ]
    others = " ".join(choice for choice in chosen if not choice.startswith(f"{group}="))
    return ConfigError(
        f"{key}: no such key of {group}={choices.get(group)}; experiment={name} sets it, for another {group}. Leave out "
        f"experiment={name}" + (f", and choose what else it chooses: {others}" if others else "")
    )


def _behind(error: BaseException | None) -> OSError | None:
    """The system's error, unwrapped from those of Hydra or logging."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:  # Hydra raises one without errno for a missing group
            return error
        wraps = isinstance(error, (HydraException, OmegaConfBaseException)) or "Unable to configure" in str(error)
        error = (error.__cause__ or error.__context__) if wraps else None
    return None


def _paths(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, path) of every path in a config."""
    for name, value in values.items():
        key = f"{where}{name}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{key}.")
        elif key in PATHS and value:
            for path in value if isinstance(value, (list, tuple)) else [value]:
                yield key, os.path.abspath(str(path))


def _of_system(error: OSError, paths: Sequence[tuple[str, str]]) -> str | None:
    reason = error.strerror or str(error)
    if error.errno in _EXHAUSTED:
        return f"the machine is out of a resource ({reason}); use fewer workers=, or raise the limit (ulimit)"
    if error.errno == errno.EPIPE:
        return f"the program that reads the output has ended ({reason})"
    if error.filename is None and error.errno not in _OF_WRITING:
        return None
    if error.filename is None:  # the file was open already
        path = next((path for key, path in paths if key in _WRITTEN), "a file")
    else:
        path = os.path.abspath(os.fsdecode(error.filename))
        path = str(Path(path).parent) if path.endswith(".partial") else path  # of files.atomic_write
    key = _key(path, paths)
    if error.errno in _OF_WRITING or key in _WRITTEN:
        return f"{path}: cannot be written ({reason}); choose another path with {key}=, or make this one writable"
    return f"{path}: cannot be used ({reason}); it is set by {key}="


def _key(path: str, paths: Sequence[tuple[str, str]]) -> str:
    """The key of the longest path above or below this one; parent folders are created first."""
    related = [(len(p), key) for key, p in paths if Path(path).is_relative_to(p) or Path(p).is_relative_to(path)]
    return max(related, default=(0, "hydra.run.dir"))[1]


def of_hydra(error: Exception, verb: str) -> str:
    """Hydra's or OmegaConf's long message as one line with the way out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.startswith("ConfigError raised while resolving"):  # by an interpolation of this package
        return text.partition(": ")[2]
    if text.startswith("Could not find 'hydra/launcher/"):
        extra = "joblib" if "/joblib" in text else "slurm" if "/submitit" in text else None
        text += f"; pip install 'fss-svf[{extra}]'" if extra else ""
    if "Available options" in str(error):
        at = next(i for i, line in enumerate(lines) if line.startswith("Available options"))
        available = [line for line in lines[at + 1 :] if ":" not in line and " " not in line]
        named = "; one of a plugin that is not installed: plugins=[MODULE]" if _PLUGGED.search(text) else ""
        return f"{text}{_closest_option(text)}; available: {', '.join(available)}{named}"
    if text.startswith("Ambiguous value for argument"):
        return ambiguous(text.split("'", 1)[1].rsplit("'", 1)[0].replace('"', ""))
    if (left_out := re.match(r"Interpolation key '(\w+)\.name' not found", text)) and options(left_out[1]):
        return f"{left_out[1]}: {verb} needs {left_out[1]}=one of {listing(options(left_out[1]), 20)}"
    if (word := re.fullmatch(r"Error parsing override '([^=']+)'", text)) is not None:
        return f"{word[1]}: a word without =; write KEY=VALUE without blanks, such as fold=0"
    if text.startswith("Could not override"):
        key = text.split("'")[1]
        return f"no key {key!r}{_closest_key(key, verb)}; 'fss-svf {verb} --cfg job' shows all keys"
    if isinstance(error, OmegaConfBaseException) and getattr(error, "full_key", None):
        return f"{error.full_key}: {text}"
    return text


def _closest_option(text: str) -> str:
    """' (did you mean FOLDER/NAME?)' for NAME of an option that lies in a folder of its group."""
    wanted = re.search(r"Could not find '(\w+)/([^']+)'", text)
    if wanted is None:
        return ""
    known = options(wanted[1])
    in_folders = sorted(option for option in known if option.rpartition("/")[2] == wanted[2])
    # The dataset of most papers first.
    in_folders.sort(key=lambda option: not option.startswith("pascal/"))
    return f" (did you mean {' or '.join(map(repr, in_folders))}?)" if in_folders else did_you_mean(wanted[2], known)


def _closest_key(key: str, verb: str) -> str:
    """' (did you mean KEY?)' over all keys of the verb's default config; one that ends like this comes first."""
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra.compose(verb)
    except Exception:  # a broken config tree must not hide the first error
        return ""
    known: list[str] = []

    def walk(node: Any, path: str) -> None:
        if OmegaConf.is_dict(node):
            for name in node:
                known.append(f"{path}{name}")
                if not OmegaConf.is_interpolation(node, name):
                    walk(node._get_node(name), f"{path}{name}.")

    walk(composed, "")
    last = key.rpartition(".")[2]
    last = _OTHER_NAMES.get(last, last)
    same = [name for name in known if name.rpartition(".")[2] == last and name != key]
    return f" (did you mean {same[0]!r}?)" if same else did_you_mean(key, known)
