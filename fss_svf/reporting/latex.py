"""Tables as LaTeX with booktabs, as papers print them: folds below their shots, the best of each column bold.

`latex` is what a paper inputs; `document` is a page around it to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from fss_svf.reporting.table import Line, Table, shots_of

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\n": " ",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}
# Method and tuning.
_NAMES = 2
_HEAD = "% Made by fss-svf report. In a paper: \\usepackage{booktabs,graphicx} and \\input of this file."
_DOCUMENT = r"""% Made by fss-svf report: shows the tables of the file beside it.
\documentclass{article}
\usepackage{booktabs,graphicx}
\usepackage[margin=2cm]{geometry}
\begin{document}
\input{NAME}
\end{document}"""


def latex(tables: Sequence[Table]) -> str:
    """All tables, without a document around them."""
    return "\n\n".join([_HEAD, *map(_one, tables)])


def document(name: str) -> str:
    """A document that shows the file `name` beside it."""
    return _DOCUMENT.replace("NAME", name)


def escape(text: str) -> str:
    """Text escaped for LaTeX. Characters outside ASCII are written as U+CODE, since pdfLaTeX stops at unknown ones."""
    return "".join(_SPECIAL.get(c, c if 31 < ord(c) < 127 else f"U+{ord(c):04X}") for c in text)


def _one(table: Table) -> str:
    # Weights and training would make the table too wide: they are in the caption, or in notes where rows differ in them.
    columns = [*range(_NAMES), *range(table.words, len(table.header))]
    common = _common_words(table)
    marks = _marks(table, common)
    lines = [_line(table, number, columns, marks) for number in range(len(table.lines))]
    # Space between measured rows, if there are published rows below them.
    if any(line.kind != "measured" for line in table.lines):
        for i, line in enumerate(table.lines):
            if line.kind == "measured" and i:
                lines[i] = f"\\addlinespace\n{lines[i]}"
    said = "".join(f" {table.header[i].capitalize()}: {text}." for i, text in common.items())
    notes = [(mark, text) for text, mark in marks.items()] + list(table.notes.items())
    shown = [f"\\textsuperscript{{{mark}}}{escape(text)}" for mark, text in notes]
    below = ["\\par\\smallskip\\raggedright\\footnotesize", "\\\\\n".join(shown)] if shown else []
    return "\n".join(
        [
            "\\begin{table}[tp]",
            "\\centering",
            f"\\caption{{{escape(table.caption + said)}}}\\smallskip",
            # Shrunk to the text's width if it is wider, never enlarged.
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{{'l' * _NAMES}{'r' * (len(columns) - _NAMES)}}}",
            "\\toprule",
            *_head([table.header[i] for i in columns]),
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}}",
            *below,
            "\\end{table}",
        ]
    )


def _common_words(table: Table) -> dict[int, str]:
    """The columns of words, besides method and tuning, that say the same in every measured row."""
    found = {}
    for column in range(_NAMES, table.words):
        texts = {line.cells[column].text for line in table.lines if line.kind == "measured"}
        if len(texts) == 1:
            found[column] = texts.pop()
    return found


def _marks(table: Table, common: Mapping[int, str]) -> dict[str, str]:
    """The other words of each measured row, by what they say: "1", "2", ..."""
    texts = dict.fromkeys(_words(table, line, common) for line in table.lines if line.kind == "measured")
    return {text: str(number) for number, text in enumerate(filter(None, texts), 1)}


def _words(table: Table, line: Line, common: Mapping[int, str]) -> str:
    columns = [column for column in range(_NAMES, table.words) if column not in common]
    return "; ".join(f"{table.header[column]}: {line.cells[column].text}" for column in columns)


def _head(header: Sequence[str]) -> list[str]:
    """One line of names, or two where columns belong to a number of shots: the shots, with a rule each, and the rest."""
    groups = [(shots, list(of)) for shots, of in groupby(enumerate(map(shots_of, header)), key=lambda pair: pair[1])]
    short = (
        name.removeprefix(shots_of(name)).replace("trainable backbone values", "trainable").strip() for name in header
    )
    names = " & ".join(map(_stacked, short)) + r" \\"
    if not any(shots for shots, _ in groups):
        return [names]
    above = [
        f"\\multicolumn{{{len(of)}}}{{c}}{{{escape(shots)}}}" if shots else " & " * (len(of) - 1)
        for shots, of in groups
    ]
    rules = [f"\\cmidrule(lr){{{of[0][0] + 1}-{of[-1][0] + 1}}}" for shots, of in groups if shots]
    return [" & ".join(above) + r" \\", " ".join(rules), names]


def _stacked(name: str) -> str:
    """A name with a comma as two lines, so that its column is no wider than its numbers."""
    lines = ",\\\\".join(map(escape, name.split(", ")))
    return f"\\shortstack[r]{{{lines}}}" if ", " in name else lines


def _line(table: Table, number: int, columns: Sequence[int], marks: Mapping[str, str]) -> str:
    line, found = table.lines[number], []
    for column in columns:
        text = line.cells[column].text
        shown = escape(text) if column < table.words else _number(text)
        found.append(f"\\textbf{{{shown}}}" if (number, column) in table.best else shown)
    own = [
        mark
        for text, mark in marks.items()
        if line.kind == "measured" and text == _words(table, line, _common_words(table))
    ]
    every = [*own, *line.marks]
    found[0] += f"\\textsuperscript{{{','.join(every)}}}" if every else ""
    return " & ".join(found) + r" \\"


def _number(text: str) -> str:
    """A number with a proper minus sign; "-" alone is a missing number."""
    if text == "-":
        return "--"
    return f"${text[0]}${text[1:]}" if text[:1] in ("-", "+") else escape(text)
