"""Results as tables: a row a method and tuning, columns by shot and fold, the published numbers below ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any, Literal

from fss_svf.reporting.published import FOLDS, Published, differences, published, why_none
from fss_svf.reporting.rows import Estimate, Result, Row, rows_of, ways

ABSENT = "-"


@dataclass(frozen=True)
class Cell:
    """text: what every format shows; interval: of one result, over its episodes, for formats with room for it."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Line:
    """kind: our numbers, published ones, or ours - published. marks: the letters of the notes that speak of it."""

    kind: Literal["ours", "published", "difference"]
    cells: tuple[Cell, ...]
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One protocol's results. The first `words` columns are words, the rest numbers. notes: sentences by their letter."""

    caption: str
    header: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: dict[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    words: int = 4


def make_tables(results: Sequence[Result]) -> list[Table]:
    """Tables of mIoU and FB-IoU in percent, one for each protocol hash, for only numbers of one protocol compare.

    A method's further predictions (BAM's meta learner, its base classes) have a row each, "method (what)". Folds stand
    side by side with their mean where there is more than one; results that differ in their training's seed alone are one
    row of means and standard deviations; a missing cell is shown as a dash.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for r in [row for result in results for row in _with_further(result)]:
        groups.setdefault((r["dataset"], r["backbone"], r["protocol"]["name"], r["protocol_hash"]), []).append(r)
    return [_one_table(group) for group in groups.values()]


def _with_further(result: Result) -> list[Result]:
    """The result, and one like it for each of its further predictions."""
    # An interval is of the main prediction alone.
    alone = {key: value for key, value in result.items() if key not in ("interval", "per_class")}
    found = [result]
    for what, scores in result.get("also", {}).items():
        named = {"method": f"{result['method']} ({what})", "prediction": what}
        found.append({**alone, "fb_iou": None, **scores, **named})
    return found


def _one_table(results: Sequence[Result]) -> Table:
    shots = sorted({r["shot"] for r in results})
    folds = sorted({r["fold"] for r in results})
    header = ["method", "tuning", "backbone weights", "training", "trainable backbone values"]
    for shot in shots:
        header += [f"{shot}-shot fold {fold}" for fold in folds]
        header += [f"{shot}-shot mean"] if len(folds) > 1 else []
        header += [f"{shot}-shot FB-IoU"]
    rows = rows_of(results)
    lines, notes = [], _Notes()
    for row in rows:
        lines += _lines(row, shots, folds, notes)
    return Table(_caption(results, rows, lines), tuple(header), tuple(lines), notes.by_letter(), tuple(rows))


def _lines(row: Row, shots: Sequence[int], folds: Sequence[int], notes: _Notes) -> list[Line]:
    """Ours, and where papers print a number, theirs and the difference."""
    known = {(r["shot"], r["fold"]): (r, p) for r in _results(row) if (p := published(r)) is not None}
    ours, theirs, less = [], [], []
    for shot in shots:
        pairs: list[tuple[Cell, Estimate | None, float | None]] = []
        of_shot = next((p for (s, _), (_, p) in known.items() if s == shot), None)
        for fold in folds:
            value = row.cell(shot, fold)
            pairs.append(
                (_cell(row, shot, fold, "miou", value), value, None if of_shot is None else of_shot.miou[fold])
            )
        # A published mean is of all folds, and compares with no other.
        whole = of_shot if len(folds) == FOLDS else None
        if len(folds) > 1:
            mean = row.mean(shot, folds)
            pairs.append((Cell(_said(mean, len(row.seeds))), mean, None if whole is None else whole.mean))
            fb_iou = row.mean(shot, folds, "fb_iou")
            pairs.append((Cell(_said(fb_iou, len(row.seeds))), fb_iou, None if whole is None else whole.fb_iou))
        else:
            value = row.cell(shot, folds[0], "fb_iou")
            pairs.append((_cell(row, shot, folds[0], "fb_iou", value), value, None))
        for cell, value, printed in pairs:
            ours.append(cell)
            theirs.append(Cell(percent(printed)))
            less.append(Cell(percent(None if value is None or printed is None else value.value - printed, "+.2f")))
    values = Cell(f"{row.first['trainable_backbone_values']:,}")
    found = [Line("ours", (*map(Cell, row.words), values, *ours))]
    if known:
        sources = [notes.letter(_source(p)) for _, p in known.values()]
        marks = [notes.letter(f"not comparable: {text}.") for r, p in known.values() for text in differences(r, p)]
        blank = [Cell("")] * 3
        head = (Cell("published"), Cell(row.words[1]), *blank)
        found.append(Line("published", (*head, *theirs), tuple(dict.fromkeys([*sources, *marks]))))
        head = (Cell("ours - published"), Cell(row.words[1]), *blank)
        found.append(Line("difference", (*head, *less), tuple(dict.fromkeys(marks))))
    return found


def _results(row: Row) -> Iterable[Result]:
    return (r for of_seed in row.cells.values() for r in of_seed.values())


def _source(row: Published) -> str:
    images = "without" if row.dagger else "with"
    dagger = "dagger" if row.dagger else "no dagger"
    return f"published: {row.source} ({dagger}: trained {images} images that hold a novel class)."


class _Notes:
    """Sentences below a table, each with a letter of its own, and none twice."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def letter(self, text: str) -> str:
        """a, b, ..., z, aa, ab, ... of a sentence."""
        if text not in self._found:
            before, last = divmod(len(self._found), len(ascii_lowercase))
            self._found[text] = (ascii_lowercase[before - 1] if before else "") + ascii_lowercase[last]
        return self._found[text]

    def by_letter(self) -> dict[str, str]:
        return {letter: text for text, letter in self._found.items()}


def _caption(results: Sequence[Result], rows: Sequence[Row], lines: Sequence[Line]) -> str:
    first = results[0]
    protocol = first["protocol"]
    text = (
        f"{first['dataset']}, {first['backbone']}: mIoU and FB-IoU in %. Protocol {protocol['name']} "
        f"({first['protocol_hash']}): {protocol['runs']} x {protocol['episodes']} episodes at {first['size']} px, "
        f"{_seeds(first['seeds'])}{ways(first, ', {} classes at once')}."
    )
    if any(len(row.seeds) > 1 for row in rows):
        text += " Rows of several training seeds: mean ± standard deviation over them; (n): of n of them only."
    if not any(line.kind == "published" for line in lines):
        reasons = list(dict.fromkeys(why_none(r) for r in results if "prediction" not in r))
        return f"{text} Not comparable with published numbers: {reasons[0]}{', and more' if reasons[1:] else ''}."
    return text + (
        " Below ours: the published number, and ours less it, in percentage points; letters say whose it is and in what "
        "ours was measured or trained otherwise, in which case the two are not comparable."
    )


def _seeds(seeds: Sequence[int]) -> str:
    """Of consecutive seeds, as those of a protocol's runs are."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _cell(row: Row, shot: int, fold: int, key: str, value: Estimate | None) -> Cell:
    """A number; of one training with its interval over episodes."""
    text, interval = _said(value, len(row.seeds)), ""
    if value is not None and value.seeds == 1:
        low, high = row.of(shot, fold)[0].get("interval", {}).get(key) or (None, None)
        interval = "" if low is None else f"{percent(low)} to {percent(high)}"
    return Cell(text, interval)


def _said(value: Estimate | None, seeds: int) -> str:
    """Mean and deviation; how many seeds it is of where they are not all."""
    if value is None:
        return ABSENT
    spread = "" if value.deviation is None else f" ± {percent(value.deviation)}"
    return percent(value.value) + spread + (f" ({value.seeds})" if value.seeds < seeds else "")


def percent(value: float | None, form: str = ".2f") -> str:
    """A fraction in percent, "-" for none."""
    return ABSENT if value is None else format(100 * value, form)
