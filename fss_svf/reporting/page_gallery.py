"""The page's gallery: pictures of episodes, to be filtered and sorted."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fss_svf.reporting.gallery import Entry, read_gallery
from fss_svf.reporting.rows import Result

# Pictures in one page, at about 20 kB each, so that a phone opens it.
MOST = 600


def gallery(results: Sequence[tuple[Result, Path]]) -> str:
    """The pictures of each result's gallery folder; equally many of each result if there are too many for a page."""
    galleries = [(result, folder, entries) for result, folder in results if (entries := read_gallery(folder))]
    if not galleries:
        return "<p>No pictures: no result has a gallery folder; evaluate with pictures=N writes one.</p>"
    each = max(1, MOST // len(galleries))
    kept = [(result, folder, _spread(entries, each)) for result, folder, entries in galleries]
    figures = [
        _figure(number, _name(result), folder, entry)
        for number, (result, folder, entries) in enumerate(kept)
        for entry in entries
    ]
    classes = sorted({name for _, _, entries in kept for entry in entries for name in entry.classes})
    left_out = sum(len(entries) for _, _, entries in galleries) - len(figures)
    more = f" {left_out:,} more are in the results' gallery folders." if left_out else ""
    results_named = [(str(number), _name(result)) for number, (result, _, _) in enumerate(kept)]
    sorts = [("worst", "lowest IoU first"), ("best", "highest IoU first"), ("number", "by number")]
    return (
        '<p class="soft">The first episodes, the best, the worst, and the best and worst of each class. Each picture: one '
        f"support of each class, the query, the true mask, the predicted mask. IoU is that of the foreground.{more}</p>\n"
        '<form class="controls" id="controls" hidden>'
        + _select("by-result", "Result", [("", "all results"), *results_named])
        + _select("by-class", "Class", [("", "all classes"), *((name, name) for name in classes)])
        + _select("by-order", "Order", sorts)
        + '</form>\n<p class="soft" id="count" role="status"></p>\n<div class="gallery" id="gallery">\n'
        + "\n".join(figures)
        + "\n</div>"
    )


def _spread(entries: Sequence[Entry], most: int) -> list[Entry]:
    """At most `most` entries, evenly spread over their IoU."""
    if len(entries) <= most:
        return list(entries)
    ranked = sorted(entries, key=lambda entry: entry.iou)
    return [ranked[i * len(ranked) // most] for i in range(most)]


def _name(result: Result) -> str:
    trained = result["checkpoint"]
    seed = f", seed {trained['seed']}" if trained else ""
    return (
        f"{result['method']}, {result['tuning']}, {result['dataset']} fold {result['fold']}, {result['shot']}-shot{seed} "
        f"({result['protocol_hash']})"
    )


def _figure(number: int, name: str, folder: Path, entry: Entry) -> str:
    image = b64encode((folder / entry.file).read_bytes()).decode()
    classes = ", ".join(entry.classes)
    description = f"Episode {entry.number}, {classes}, IoU {100 * entry.iou:.0f} %: supports, query, truth, prediction"
    data = {"result": number, "number": entry.number, "iou": f"{entry.iou:.6f}", "classes": json.dumps(entry.classes)}
    marked = " ".join(f'data-{key}="{escape(str(value), quote=True)}"' for key, value in data.items())
    return (
        f'<figure {marked}><img loading="lazy" alt="{escape(description, quote=True)}" src="data:image/jpeg;base64,{image}">'
        f"<figcaption><strong>{escape(classes)}</strong>, IoU {100 * entry.iou:.0f}, episode {entry.number}<br>"
        f"{escape(name)}</figcaption></figure>"
    )


def _select(name: str, label: str, choices: Sequence[tuple[str, str]]) -> str:
    options = "".join(f'<option value="{escape(value, quote=True)}">{escape(text)}</option>' for value, text in choices)
    return f'<label>{label}<select id="{name}" autocomplete="off">{options}</select></label>'
