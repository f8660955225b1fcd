"""Results as tables: rows by method and tuning, columns by shot and fold, published numbers below the measured ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any, Literal

from fss_svf.reporting.published import FOLDS, Published, differences, published, why_none
from fss_svf.reporting.rows import Estimate, Result, Row, entry, method_of, rows_of, ways

ABSENT = "-"
# Rows of their own below the mean of base and novel classes (protocol.classes=all).
_PARTS = {"base_miou": "base classes", "novel_miou": "novel classes", "harmonic_mean": "harmonic mean"}
# Columns of support reliance (docs/results.md): in percentage points of mIoU.
_RELIANCE = {"reliance.in_query.difference": "reliance", "reliance.random.difference": "reliance, random class"}
_NUMBER = re.compile(r"[+-]?[\d,]*\d(\.\d+)?")


@dataclass(frozen=True)
class Cell:
    """text: for every format. interval: that of one result over its episodes, for formats with room for it."""

    text: str
    interval: str = ""

    @property
    def number(self) -> float | None:
        """The number that the text begins with, as printed; None for words and a dash."""
        found = _NUMBER.match(self.text)
        return None if found is None else float(found[0].replace(",", ""))


@dataclass(frozen=True)
class Line:
    """kind: measured numbers, published ones, or measured - published. marks: letters of the notes about the line.

    part: measured of something else than the method's own prediction: base classes, BAM's meta learner
    """

    kind: Literal["measured", "published", "difference"]
    cells: tuple[Cell, ...]
    marks: tuple[str, ...] = ()
    part: bool = False


@dataclass(frozen=True)
class Table:
    """Results of one protocol. The first `words` columns are text, the others numbers. notes: sentences by letter."""

    caption: str
    header: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: dict[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    words: int = 4

    @property
    def best(self) -> frozenset[tuple[int, int]]:
        """(line, column) of the highest measured numbers of each column that belongs to a number of shots, as printed.

        Parts are left out: they measure something else.
        """
        found = set()
        own = [n for n, line in enumerate(self.lines) if line.kind == "measured" and not line.part]
        for column, name in enumerate(self.header):
            shown = {n: self.lines[n].cells[column].number for n in own}
            numbers = {n: number for n, number in shown.items() if number is not None}
            if shots_of(name) and len(set(numbers.values())) > 1:
                found |= {(n, column) for n, number in numbers.items() if number == max(numbers.values())}
        return frozenset(found)


def shots_of(name: str) -> str:
    """ "1-shot" of the column "1-shot fold 0"; empty for a column that belongs to no number of shots."""
    return found[0] if (found := re.match(r"\d+-shot(?= )", name)) else ""


def make_tables(results: Sequence[Result]) -> list[Table]:
    """Tables of mIoU and FB-IoU in percent, one for each protocol hash: only numbers of one protocol are comparable.

    Further predictions of a method (BAM's meta learner, its base classes) have a row each, "method (what)". Several folds
    are in columns with their mean. Results that differ only in the seed of their training are one row of means and
    standard deviations. A missing cell is a dash.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for r in [row for result in results for row in _with_further(result)]:
        groups.setdefault((r["dataset"], r["backbone"], r["protocol"]["name"], r["protocol_hash"]), []).append(r)
    return [_one_table(group) for group in groups.values()]


def _with_further(result: Result) -> list[Result]:
    """The result, and a copy for each of its further predictions."""
    # Only the main prediction has intervals and reliance.
    copied = {key: value for key, value in result.items() if key not in ("interval", "per_class", "reliance")}
    rows = [result, *_parts(result, result, result["method"])]
    for what, scores in result.get("also", {}).items():
        named = {"method": f"{result['method']} ({what})", "prediction": what, "part_of": method_of(result)}
        rows.append({**copied, "fb_iou": None, **scores, **named})
        rows += _parts(result, scores, f"{result['method']}, {what}")
    return rows


def _parts(result: Result, scores: Mapping[str, Any], method: str) -> list[Result]:
    """Of a number that joins base and novel classes, a copy of the result for each of its parts, with its interval."""
    rows: list[Result] = []
    for key, what in _PARTS.items():
        if key in scores:
            named = {"method": f"{method} ({what})", "prediction": what, "part_of": method_of(result)}
            interval = {"miou": scores["interval"][key]} if "interval" in scores else {}
            numbers = {"fb_iou": None, "miou": scores[key], "interval": interval, "per_class": {}}
            rows.append({**result, **named, **numbers})
    return rows


def _one_table(results: Sequence[Result]) -> Table:
    shots = sorted({r["shot"] for r in results})
    folds = sorted({r["fold"] for r in results})
    header = ["method", "tuning", "backbone weights", "training", "trainable backbone values"]
    for shot in shots:
        header += [f"{shot}-shot fold {fold}" for fold in folds]
        header += [f"{shot}-shot mean"] if len(folds) > 1 else []
        header += [f"{shot}-shot FB-IoU"]
        header += [f"{shot}-shot {what}" for what in _reliance(results, shot).values()]
    rows = rows_of(results)
    lines, notes = [], _Notes()
    for row in rows:
        lines += _lines(row, shots, folds, notes, {shot: list(_reliance(results, shot)) for shot in shots})
    return Table(_caption(results, rows, lines), tuple(header), tuple(lines), notes.by_letter(), tuple(rows))


def _reliance(results: Sequence[Result], shot: int) -> dict[str, str]:
    """Columns of support reliance by the key of their number, if a result of this shot has it."""
    return _RELIANCE if any("reliance" in r for r in results if r["shot"] == shot) else {}


def _lines(
    row: Row, shots: Sequence[int], folds: Sequence[int], notes: _Notes, further: Mapping[int, Sequence[str]]
) -> list[Line]:
    """The measured line, and if a paper prints numbers, the published line and the difference.

    further: of each shot the keys of numbers that no paper prints, a column each.
    """
    known = {(r["shot"], r["fold"]): (r, p) for r in _results(row) if (p := published(r)) is not None}
    measured, printed, less = [], [], []
    for shot in shots:
        pairs: list[tuple[Cell, Estimate | None, float | None]] = []
        of_shot = next((p for (s, _), (_, p) in known.items() if s == shot), None)
        for fold in folds:
            value = row.cell(shot, fold)
            pairs.append(
                (_cell(row, shot, fold, "miou", value), value, None if of_shot is None else of_shot.miou[fold])
            )
        # A published mean is over all folds, and is compared only with such a mean.
        all_folds = of_shot if len(folds) == FOLDS else None
        if len(folds) > 1:
            mean = row.mean(shot, folds)
            pairs.append((Cell(_in_words(mean, len(row.seeds))), mean, None if all_folds is None else all_folds.mean))
            fb_iou = row.mean(shot, folds, "fb_iou")
            pairs.append(
                (Cell(_in_words(fb_iou, len(row.seeds))), fb_iou, None if all_folds is None else all_folds.fb_iou)
            )
        else:
            value = row.cell(shot, folds[0], "fb_iou")
            pairs.append((_cell(row, shot, folds[0], "fb_iou", value), value, None))
        for key in further[shot]:
            value = row.mean(shot, folds, key)
            cell = Cell(_in_words(value, len(row.seeds)))
            pairs.append((cell if len(folds) > 1 else _cell(row, shot, folds[0], key, value), value, None))
        for cell, value, number in pairs:
            measured.append(cell)
            printed.append(Cell(percent(number)))
            less.append(Cell(percent(None if value is None or number is None else value.value - number, "+.2f")))
    values = Cell(f"{row.first['trainable_backbone_values']:,}")
    lines = [Line("measured", (*map(Cell, row.words), values, *measured), part="prediction" in row.first)]
    if known:
        sources = [notes.letter(_source(p)) for _, p in known.values()]
        marks = [notes.letter(f"not comparable: {text}.") for r, p in known.values() for text in differences(r, p)]
        blank = [Cell("")] * 3
        head = (Cell("published"), Cell(row.words[1]), *blank)
        lines.append(Line("published", (*head, *printed), tuple(dict.fromkeys([*sources, *marks]))))
        head = (Cell("measured - published"), Cell(row.words[1]), *blank)
        lines.append(Line("difference", (*head, *less), tuple(dict.fromkeys(marks))))
    return lines


def _results(row: Row) -> Iterable[Result]:
    return (r for of_seed in row.cells.values() for r in of_seed.values())


def _source(row: Published) -> str:
    images = "without" if row.dagger else "with"
    dagger = "dagger" if row.dagger else "no dagger"
    return f"published: {row.source} ({dagger}: trained {images} images with a novel class)."


class _Notes:
    """The notes below a table: each sentence once, with a letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, text: str) -> str:
        """The letter of a sentence: a, b, ..., z, aa, ab, ..."""
        if text not in self._letters:
            before, last = divmod(len(self._letters), len(ascii_lowercase))
            self._letters[text] = (ascii_lowercase[before - 1] if before else "") + ascii_lowercase[last]
        return self._letters[text]

    def by_letter(self) -> dict[str, str]:
        return {letter: text for text, letter in self._letters.items()}


def _caption(results: Sequence[Result], rows: Sequence[Row], lines: Sequence[Line]) -> str:
    first = results[0]
    protocol = first["protocol"]
    what, episodes = "mIoU and FB-IoU in %", f"{protocol['episodes']} episodes"
    if protocol["episodes"] is None:
        what += "; mIoU is the mean of base and novel mIoU, which stand below it with their harmonic mean"
        episodes = f"{first['images_listed']} listed images without the supports"
    text = (
        f"{first['dataset']}, {first['backbone']}: {what}. Protocol {protocol['name']} "
        f"({first['protocol_hash']}): {protocol['runs']} x {episodes} at {first['size']} px, "
        f"{_seeds(first['seeds'])}{ways(first, ', {} classes at once')}."
    )
    if any("reliance" in r for r in results):
        text += " Reliance: mIoU by the right supports less mIoU by supports of another class, in percentage points."
    if any(len(row.seeds) > 1 for row in rows):
        text += " Rows of several training seeds: mean ± standard deviation over them; (n): over n of them only."
    if not any(line.kind == "published" for line in lines):
        reasons = list(dict.fromkeys(why_none(r) for r in results if "prediction" not in r))
        why = reasons[0] if len(reasons) == 1 else "there is none here for any of these rows"
        return f"{text} Not comparable with published numbers: {why}."
    return text + (
        " Below a measured number: the published one, and the difference in percentage points. Letters refer to the notes: "
        "its source, and any difference in measurement or training, which makes the two not comparable."
    )


def _seeds(seeds: Sequence[int]) -> str:
    """Consecutive seeds, as a protocol's runs have, in words."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _cell(row: Row, shot: int, fold: int, key: str, value: Estimate | None) -> Cell:
    """A number; for a single training with its interval over episodes, by the number's key."""
    of_interval = f"{key.removesuffix('.difference')}.interval" if key.endswith(".difference") else f"interval.{key}"
    text, interval = _in_words(value, len(row.seeds)), ""
    if value is not None and value.seeds == 1:
        low, high = entry(row.of(shot, fold)[0], of_interval) or (None, None)
        interval = "" if low is None else f"{percent(low)} to {percent(high)}"
    return Cell(text, interval)


def _in_words(value: Estimate | None, seeds: int) -> str:
    """Mean and deviation, and the number of seeds if some are missing."""
    if value is None:
        return ABSENT
    spread = "" if value.deviation is None else f" ± {percent(value.deviation)}"
    return percent(value.value) + spread + (f" ({value.seeds})" if value.seeds < seeds else "")


def percent(value: float | None, form: str = ".2f") -> str:
    """A fraction in percent, "-" for None."""
    return ABSENT if value is None else format(100 * value, form)
