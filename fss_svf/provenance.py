"""How a run came about: versions, the state of the code, the command."""

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

from fss_svf.config import to_mapping
from fss_svf.files import appearing_whole

_PACKAGES = ("fss-svf", "torch", "torchvision", "numpy", "opencv-python-headless", "pycocotools", "hydra-core")

# What Hydra composed for the run of this process, by file of .hydra, where it is still to be written.
command: dict[str, str] = {}


def keep_command(folder: Path) -> None:
    """Write `command` to folder/.hydra."""
    global command
    for name, text in command.items():
        (folder / ".hydra").mkdir(exist_ok=True)
        with appearing_whole(folder / ".hydra" / name) as unfinished:
            # As the names in it are: also those that are no UTF-8.
            unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")
    command = {}


def write_run_folder(folder: Path, config: Any, facts: Mapping[str, Any] | None = None) -> None:
    """config.yaml with every value resolved, provenance.json with an entry a start (a resumed run has several),
    and the .hydra of a run that replaces another.

    facts: what else says how the run came about, such as the hash of its data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with appearing_whole(folder / "config.yaml") as unfinished:  # a later start compares its config with it
        unfinished.write_text(yaml.safe_dump(to_mapping(config), sort_keys=False))
    keep_command(folder)
    path = folder / "provenance.json"
    earlier = json.loads(path.read_text())["starts"] if path.exists() else []
    write_json(path, {"starts": [*earlier, {**provenance(), **(facts or {})}]})


def provenance() -> dict[str, Any]:
    """Command, time, versions and git state of the code, ready for JSON."""
    return {
        "command": sys.argv,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    with appearing_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it; None for an installed package."""

    def git(*arguments: str) -> str:
        source = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(source), *arguments], check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None
        # A new file counts too: a method nobody committed is a modification.
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--", ".", "../conf")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
