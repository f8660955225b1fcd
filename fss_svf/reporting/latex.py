"""Tables as LaTeX with booktabs: a document that compiles as it is, from which single tables can be copied."""

from __future__ import annotations

from collections.abc import Sequence

from fss_svf.reporting.table import Line, Table

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
_HEAD = r"""% Made by fss-svf report. A table needs \usepackage{booktabs,graphicx}.
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx}
\usepackage[margin=2cm]{geometry}
\begin{document}
"""


def latex(tables: Sequence[Table]) -> str:
    """A document with all tables."""
    return _HEAD + "\n\n".join(map(_one, tables)) + "\n\n\\end{document}"


def escape(text: str) -> str:
    """Text escaped for LaTeX. Characters outside ASCII are written as U+CODE, since pdfLaTeX stops at unknown ones."""
    return "".join(_SPECIAL.get(c, c if 31 < ord(c) < 127 else f"U+{ord(c):04X}") for c in text)


def _one(table: Table) -> str:
    numbers = len(table.header) - table.words
    lines = [_line(table, line) for line in table.lines]
    # Space between measured rows, if there are published rows below them.
    if any(line.kind != "measured" for line in table.lines):
        for i, line in enumerate(table.lines):
            if line.kind == "measured" and i:
                lines[i] = f"\\addlinespace\n{lines[i]}"
    notes = [f"\\textsuperscript{{{letter}}}{escape(text)}" for letter, text in table.notes.items()]
    below = ["\\par\\smallskip\\raggedright\\footnotesize", "\\\\\n".join(notes)] if notes else []
    return "\n".join(
        [
            "\\begin{table}[p]",
            "\\centering",
            f"\\caption{{{escape(table.caption)}}}",
            # Shrunk to the text's width if it is wider, never enlarged.
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{{'l' * table.words}{'r' * numbers}}}",
            "\\toprule",
            " & ".join(map(escape, table.header)) + r" \\",
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}}",
            *below,
            "\\end{table}",
        ]
    )


def _line(table: Table, line: Line) -> str:
    words = [escape(cell.text) for cell in line.cells[: table.words]]
    words[0] += f"\\textsuperscript{{{','.join(line.marks)}}}" if line.marks else ""
    return " & ".join([*words, *(_number(cell.text) for cell in line.cells[table.words :])]) + r" \\"


def _number(text: str) -> str:
    """A number with a proper minus sign; "-" alone is a missing number."""
    if text == "-":
        return "--"
    return f"${text[0]}${text[1:]}" if text[:1] in ("-", "+") else escape(text)
