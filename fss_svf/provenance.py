"""Provenance of a run: command, versions, machine, git state."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from fss_svf import plugins
from fss_svf.config import to_mapping
from fss_svf.files import atomic_write
from fss_svf.machine import machine

_PACKAGES = ("fss-svf", "torch", "torchvision", "numpy", "opencv-python-headless", "pycocotools", "hydra-core")

# Texts of the .hydra files of this process's run that are not yet written, by file name.
command: dict[str, str] = {}


def keep_command(folder: Path) -> None:
    """Write `command` to folder/.hydra."""
    global command
    for name, text in command.items():
        (folder / ".hydra").mkdir(exist_ok=True)
        with atomic_write(folder / ".hydra" / name) as unfinished:
            # Names in it need not be UTF-8.
            unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")
    command = {}


def write_run_folder(folder: Path, config: Any, facts: Mapping[str, Any] | None = None) -> None:
    """Write config.yaml with every value resolved, provenance.json with one entry a start (a resumed run has several),
    and the .hydra of a run that replaces another.

    facts: further entries of provenance.json, such as the hash of the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.yaml") as unfinished:  # a later start compares its config with it
        unfinished.write_text(yaml.safe_dump(to_mapping(config), sort_keys=False))
    keep_command(folder)
    path = folder / "provenance.json"
    earlier = json.loads(path.read_text())["starts"] if path.exists() else []
    write_json(path, {"starts": [*earlier, {**provenance(), **(facts or {})}]})


def provenance() -> dict[str, Any]:
    """Command, time, versions, machine and git state, as a dict for JSON."""
    return {
        "command": sys.argv,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(Path(__file__), ".", "../conf"),
        "plugins": [
            {**record, "git": _git_of(str(record["module"]))} for record in plugins.records(plugins.imported())
        ],
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_of(module: str) -> dict[str, Any] | None:
    file = getattr(sys.modules[module], "__file__", None)
    return None if file is None else _git_state(Path(file), ".")


def _git_state(source: Path, *paths: str) -> dict[str, Any] | None:
    """The commit of the checkout with the file `source`, and whether `paths`, relative to its folder, differ from it.

    None for an installed package.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source.parent), *arguments], check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        if not git("ls-files", source.name):
            return None
        # A new file counts as a modification: it may be a method.
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--", *paths)),
        }
    except (OSError, subprocess.SubprocessError):
        return None
