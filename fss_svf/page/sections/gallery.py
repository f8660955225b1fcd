"""The gallery: pictures of episodes, to be filtered, sorted, enlarged, and laid beside those of another result."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from fss_svf.methods.controls import CONTROLS
from fss_svf.page.content import Content, names_of_results
from fss_svf.reporting.gallery import Entry, read_gallery
from fss_svf.reporting.rows import Result

# Pictures in one page, at about 20 kB each, so that a phone opens it.
MOST = 600


def gallery(content: Content) -> str:
    """The pictures of each result's gallery folder; equally many of each result if there are too many for a page."""
    folders = [(r, Path(r["path"]).parent / "gallery") for r in content.results if "path" in r]
    galleries = [(result, folder, entries) for result, folder in folders if (entries := read_gallery(folder))]
    if not galleries:
        return "<p>No pictures: no result has a gallery folder; evaluate with pictures=N writes one.</p>"
    each = max(1, MOST // len(galleries))
    kept = [(result, folder, _spread(entries, each)) for result, folder, entries in galleries]
    # The controls are there to be beaten, and few want to look at them. Alone, they are all there is.
    controls = {result["method"] for result, _, _ in kept} & set(CONTROLS)
    controls = controls if any(result["method"] not in controls for result, _, _ in kept) else set()
    names = names_of_results(content, [result for result, _, _ in kept])
    figures = [
        _figure(name, result, folder, entry, result["method"] in controls)
        for name, (result, folder, entries) in zip(names, kept)
        for entry in entries
    ]
    classes = sorted({name for _, _, entries in kept for entry in entries for name in entry.classes})
    left_out = sum(len(entries) for _, _, entries in galleries) - len(figures)
    more = f" {left_out:,} more are in the results' gallery folders." if left_out else ""
    by_name = [(name, name) for name in names]
    sorts = [("worst", "lowest IoU first"), ("best", "highest IoU first"), ("number", "by number")]
    sorts.append(("difference", "largest difference first, of two results"))
    with_controls = (
        f'<label class="tick"><input type="checkbox" id="with-controls" autocomplete="off"> controls '
        f"({escape(', '.join(sorted(controls)))})</label>"
        if controls
        else ""
    )
    return (
        '<p class="soft">The first episodes, the best, the worst, and the best and worst of each class. Each picture: one '
        f"support of each class, the query, the true mask, the predicted mask. IoU is that of the foreground.{more}</p>\n"
        '<form class="controls" id="controls" hidden>'
        + _select("by-result", "Result", [("", "all results"), *by_name])
        + _select("beside", "Beside, on the same episodes", [("", "nothing"), *by_name])
        + _select("by-class", "Class", [("", "all classes"), *((name, name) for name in classes)])
        + _select("by-order", "Order", sorts)
        + with_controls
        + '</form>\n<p class="soft" id="count" role="status"></p>\n<div class="gallery" id="gallery">\n'
        + "\n".join(figures)
        + '\n</div>\n<dialog id="enlarged" aria-label="Enlarged episode"><form method="dialog"><button>Close</button></form>'
        "<div></div></dialog>"
    )


def _spread(entries: Sequence[Entry], most: int) -> list[Entry]:
    """At most `most` entries: half are the first by number, which other results show too, the rest is spread over IoU."""
    if len(entries) <= most:
        return list(entries)
    numbered = sorted(entries, key=lambda entry: (entry.seed, entry.number))
    first, rest = numbered[: most // 2], numbered[most // 2 :]
    ranked, more = sorted(rest, key=lambda entry: entry.iou), most - len(first)
    return [*first, *(ranked[i * len(ranked) // more] for i in range(more))]


def _figure(name: str, result: Result, folder: Path, entry: Entry, control: bool) -> str:
    path = folder / entry.file
    image = b64encode(path.read_bytes()).decode()
    with Image.open(path) as opened:
        width, height = opened.size
    classes = ", ".join(entry.classes)
    description = f"Episode {entry.number}, {classes}, IoU {100 * entry.iou:.0f} %: supports, query, truth, prediction"
    # Results with the same key show the same episode.
    episode = [result[key] for key in ("dataset", "fold", "shot", "protocol_hash")]
    data = {
        "result": name,
        "episode": json.dumps([*episode, entry.seed, entry.number]),
        "number": entry.number,
        "iou": f"{entry.iou:.6f}",
        "classes": json.dumps(entry.classes),
        "control": int(control),
    }
    marked = " ".join(f'data-{key}="{escape(str(value), quote=True)}"' for key, value in data.items())
    return (
        f"<figure {marked}{' hidden' if control else ''}>"
        f'<img decoding="async" width="{width}" height="{height}" tabindex="0" role="button" '
        f'alt="{escape(description, quote=True)}" src="data:image/jpeg;base64,{image}">'
        f"<figcaption><strong>{escape(classes)}</strong>, IoU {100 * entry.iou:.0f}, episode {entry.number}<br>"
        f"{escape(name)}</figcaption></figure>"
    )


def _select(name: str, label: str, choices: Sequence[tuple[str, str]]) -> str:
    options = "".join(f'<option value="{escape(value, quote=True)}">{escape(text)}</option>' for value, text in choices)
    return f'<label>{label}<select id="{name}" autocomplete="off">{options}</select></label>'
