"""What is on the page of demo, by the browser's tab, so that a reload loses nothing while the demo runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fss_svf.data.file_names import plain
from fss_svf.errors import DataError
from fss_svf.prediction.examples import UNNAMED
from fss_svf.prediction.finder import Painted

CLASSES = 5  # tabs
_KEPT = 50  # pages


@dataclass
class Draft:
    """The classes of a page.

    opened    the tabs that are there, by their numbers from 1 on
    names     what stands in their fields
    examples  what is painted, by tab and place
    """

    opened: list[int] = field(default_factory=lambda: [1])
    names: dict[int, str] = field(default_factory=dict)
    examples: dict[tuple[int, int], Painted] = field(default_factory=dict)

    def name(self, tab: int) -> str:
        """That of the field, or "class n" of the n-th tab."""
        return plain(self.names.get(tab, "").strip()) or f"class {self.opened.index(tab) + 1}"

    def add(self) -> int | None:
        """Open a tab and return its number, or None where all are open."""
        free = [tab for tab in range(1, CLASSES + 1) if tab not in self.opened]
        if not free:
            return None
        self.opened = sorted([*self.opened, free[0]])
        return free[0]

    def remove(self, tab: int) -> None:
        """Close one of several tabs, and forget what was in it. One that is closed stays so, as at a second click."""
        if tab not in self.opened or len(self.opened) == 1:
            return
        self.opened.remove(tab)
        self.names.pop(tab, None)
        self.examples = {place: painted for place, painted in self.examples.items() if place[0] != tab}

    def of_tab(self, tab: int) -> list[Painted]:
        """The examples of a tab, in their places."""
        return [
            painted for place, painted in sorted(self.examples.items(), key=lambda item: item[0]) if place[0] == tab
        ]

    def classes(self) -> Mapping[int, str]:
        """The names by tab; UNNAMED of a single one. Raises DataError for two of one name."""
        if len(self.opened) == 1:
            return {self.opened[0]: UNNAMED}
        names: dict[int, str] = {}
        for tab in self.opened:
            name = self.name(tab)
            if name.casefold() in map(str.casefold, names.values()):
                raise DataError(f"{name}: two tabs have this name; give one of them another, or remove it.")
            names[tab] = name
        return names


class Drafts(dict[str, Draft]):
    """Drafts by the key that a browser's tab keeps. The 50 latest are kept."""

    def of(self, key: str | None) -> Draft:
        """The draft of this key, a fresh one where there is none."""
        draft = self.pop(key, None) if key else None
        draft = draft or Draft()
        if key:
            self[key] = draft
        for old in list(self)[:-_KEPT]:
            del self[old]
        return draft
