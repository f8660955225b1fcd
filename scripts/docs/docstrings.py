"""An extension of Griffe: the project's docstrings as Markdown, for the pages of docs/reference/.

name   its meaning, which may        a definition list
       go on in a second line
>>> of examples                      a block of code
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(r"(\S(?:.*?\S)?) {2,}(\S.*)")


class Docstrings(Extension):
    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    return "\n\n".join(_paragraph(paragraph) for paragraph in re.split(r"\n\s*\n", docstring))


def _paragraph(text: str) -> str:
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    entries = _entries(text.splitlines())
    return "\n\n".join(f"`{name}`\n:   {meaning}" for name, meaning in entries) if entries else text


def _entries(lines: list[str]) -> list[tuple[str, str]]:
    """Names and meanings of aligned lines; empty for a text that is none."""
    entries: list[tuple[str, str]] = []
    columns = {found.start(2) for line in lines if (found := ENTRY.fullmatch(line))}
    for line in lines:
        found = ENTRY.fullmatch(line)
        # The longest name has one space behind it, where the others' meanings begin.
        column = next((c for c in columns if line[c - 1 : c] == " " and " " not in line[: c - 1]), None)
        if found:
            entries.append((found[1], found[2]))
        elif line.startswith("    ") and entries:
            name, meaning = entries.pop()
            entries.append((name, f"{meaning} {line.strip()}".strip()))
        elif column and not line.startswith(" "):
            entries.append((line[: column - 1], line[column:]))
        elif columns or re.match(r"\S+,( \S+,)* \S+$", line):  # names alone, their meaning below
            entries.append((line.strip(), ""))
        else:
            return []
    return entries if all(meaning for _, meaning in entries) else []
