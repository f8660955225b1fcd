"""Results as a Markdown table: a row a method and tuning, columns by shot and fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
Row = tuple[str, str, str, str]
_ABSENT = object()


def markdown_table(results: Sequence[Result]) -> str:
    """Tables of mIoU and FB-IoU in percent, one for each protocol hash, for only numbers of one protocol compare.

    A method's further predictions (BAM's meta learner, its base classes) have a row each, "method (what)". Folds stand
    side by side with their mean where there is more than one; a missing cell is shown as a dash.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for r in [row for result in results for row in _with_further(result)]:
        groups.setdefault((r["dataset"], r["backbone"], r["protocol"]["name"], r["protocol_hash"]), []).append(r)
    return "\n\n".join(_one_table(key, group) for key, group in groups.items())


def _with_further(result: Result) -> list[Result]:
    """The result, and one like it for each of its further predictions."""
    further = result.get("also", {}).items()
    return [
        result,
        *({**result, "fb_iou": None, **scores, "method": f"{result['method']} ({what})"} for what, scores in further),
    ]


def _one_table(key: tuple[Any, ...], results: Sequence[Result]) -> str:
    dataset, backbone, protocol, protocol_hash = key
    shots = sorted({r["shot"] for r in results})
    folds = sorted({r["fold"] for r in results})
    # Results of one name that were trained with other options are other rows, which say what differs.
    telling = _telling_options(results)
    rows = [_row(r, telling) for r in results]
    cells = {(row, r["shot"], r["fold"]): r for row, r in zip(rows, results)}
    header = ["method", "tuning", "backbone weights", "training", "trainable backbone values"]
    for shot in shots:
        header += [f"{shot}-shot fold {fold}" for fold in folds]
        header += [f"{shot}-shot mean"] if len(folds) > 1 else []
        header += [f"{shot}-shot FB-IoU"]
    lines = [header]
    for row in dict.fromkeys(rows):
        found = [cells.get((row, shot, fold)) for shot in shots for fold in folds]
        values = next(r["trainable_backbone_values"] for r in found if r)
        line = [*row, f"{values:,}"]
        for shot in shots:
            of_shot = [cells.get((row, shot, fold)) for fold in folds]
            line += [_percent(None if r is None else r["miou"]) for r in of_shot]
            line += [_mean(of_shot, "miou")] if len(folds) > 1 else []
            line += [_mean(of_shot, "fb_iou")]
        lines.append(line)
    first = results[0]
    runs, episodes = first["protocol"]["runs"], first["protocol"]["episodes"]
    caption = (
        f"{dataset}, {backbone}: mIoU and FB-IoU in %. Protocol {protocol} ({protocol_hash}): {runs} x {episodes} episodes "
        f"at {first['size']} px, {_seeds(first['seeds'])}{_ways(first, ', {} classes at once')}."
    )
    return caption + "\n\n" + markdown_lines(lines, words=4)


def _telling_options(results: Sequence[Result]) -> dict[Row, list[str]]:
    """The options that differ among the results of a row, by the row without them."""
    of_row: dict[Row, list[Mapping[str, Any]]] = {}
    for r in results:
        of_row.setdefault(_row(r), []).append(_options(r))
    found = {}
    for row, each in of_row.items():
        keys = dict.fromkeys(key for options in each for key in options)
        found[row] = [key for key in keys if any(o.get(key, _ABSENT) != each[0].get(key, _ABSENT) for o in each)]
    return found


def _row(result: Result, telling: Mapping[Row, Sequence[str]] | None = None) -> Row:
    """What makes a row, as its first cells: method, tuning, what the backbone started from, and the training."""
    trained = result["checkpoint"]
    training = "none"
    if trained:
        kind = f"{_ways(trained, '{}-way ')}{trained['shot']}-shot"
        # Held-out classes are others in every fold, and told by `validate.held_out` where rows differ in them.
        selection = trained["selection"].split(":")[0]
        training = f"{kind}, {trained['recipe']}, seed {trained['seed']}, {selection}"
    # Folds stand side by side in a row, so the fold of a base learner is not part of it.
    weights = result["backbone_weights"].split(", ")[0]
    row = result["method"], result["tuning"], weights, training
    options = _options(result)
    differing = [f"{key}={options[key]}" for key in (telling or {}).get(row, ()) if key in options]
    return (*row[:3], ", ".join([training, *differing]))


def _options(result: Result) -> Mapping[str, Any]:
    """The options of its training; a result of before they were kept has none."""
    found: Mapping[str, Any] = (result["checkpoint"] or {}).get("options", {})
    return found


def _seeds(seeds: Sequence[int]) -> str:
    """Of consecutive seeds, as those of a protocol's runs are."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _ways(result: Result, text: str) -> str:
    """The text with the number of ways where there are several. A result of before there were has none."""
    way = result.get("way", 1)
    return text.format(way) if way > 1 else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _mean(results: Sequence[Result | None], key: str) -> str:
    """The mean over folds; a dash unless every fold is there."""
    present = [r[key] for r in results if r is not None and r[key] is not None]
    return _percent(sum(present) / len(present)) if present and len(present) == len(results) else "-"


def markdown_lines(lines: Sequence[Sequence[str]], words: int) -> str:
    """A Markdown table, the header first: the first `words` columns to the left, the numbers behind them to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "| " + " | ".join(c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) if i < words else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])
