"""Tables as LaTeX with booktabs, as papers print them: folds below their shots, the best of each column bold.

`latex` is what a paper inputs; `document` is a page around it to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fss_svf.reporting.table import Table, shots_of

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
_HEAD = "% Made by fss-svf report. In a paper: \\usepackage{booktabs,graphicx} and \\input of this file."
_DOCUMENT = r"""% Made by fss-svf report: shows the tables of the file beside it.
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
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
    common = _common_words(table)
    columns = [i for i in range(len(table.header)) if i not in common]
    words = sum(i < table.words for i in columns)
    lines = [_line(table, number, columns) for number in range(len(table.lines))]
    # Space between measured rows, if there are published rows below them.
    if any(line.kind != "measured" for line in table.lines):
        for i, line in enumerate(table.lines):
            if line.kind == "measured" and i:
                lines[i] = f"\\addlinespace\n{lines[i]}"
    notes = [f"\\textsuperscript{{{letter}}}{escape(text)}" for letter, text in table.notes.items()]
    below = ["\\par\\smallskip\\raggedright\\footnotesize", "\\\\\n".join(notes)] if notes else []
    said = "".join(f" {table.header[i]}: {text}." for i, text in common.items())
    return "\n".join(
        [
            "\\begin{table}[p]",
            "\\centering",
            f"\\caption{{{escape(table.caption + said)}}}",
            # Shrunk to the text's width if it is wider, never enlarged.
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{{'l' * words}{'r' * (len(columns) - words)}}}",
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
    """The columns of words, besides method and tuning, that say the same in every measured row. The caption says it."""
    found = {}
    for column in range(2, table.words):
        texts = {line.cells[column].text for line in table.lines if line.kind == "measured"}
        if len(texts) == 1:
            found[column] = texts.pop()
    return found


def _head(header: Sequence[str]) -> list[str]:
    """One line of names, or two where columns belong to a number of shots: the shots, with a rule each, and the rest."""
    groups = [(shots, list(of)) for shots, of in groupby(enumerate(map(shots_of, header)), key=lambda pair: pair[1])]
    names = " & ".join(escape(name.removeprefix(shots_of(name)).strip()) for name in header) + r" \\"
    if not any(shots for shots, _ in groups):
        return [names]
    above = [f"\\multicolumn{{{len(of)}}}{{c}}{{{escape(shots)}}}" if shots else " & " * (len(of) - 1) for shots, of in groups]
    rules = [f"\\cmidrule(lr){{{of[0][0] + 1}-{of[-1][0] + 1}}}" for shots, of in groups if shots]
    return [" & ".join(above) + r" \\", " ".join(rules), names]


def _line(table: Table, number: int, columns: Sequence[int]) -> str:
    line, found = table.lines[number], []
    for column in columns:
        text = line.cells[column].text
        shown = escape(text) if column < table.words else _number(text)
        found.append(f"\\textbf{{{shown}}}" if (number, column) in table.best else shown)
    found[0] += f"\\textsuperscript{{{','.join(line.marks)}}}" if line.marks else ""
    return " & ".join(found) + r" \\"


def _number(text: str) -> str:
    """A number with a proper minus sign; "-" alone is a missing number."""
    if text == "-":
        return "--"
    return f"${text[0]}${text[1:]}" if text[:1] in ("-", "+") else escape(text)
