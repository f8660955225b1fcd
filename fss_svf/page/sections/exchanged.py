"""Episodes with the right supports, with wrong ones, and with none marked: of the results with reliance=true."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from fss_svf.page.content import Content, folded, names_of_results

# At about 200 kB each.
MOST = 12


def exchanged(content: Content) -> str:
    """The picture reliance.png beside each result.json that has one; nothing where none has."""
    paths = [(r, Path(r["path"]).with_name("reliance.png")) for r in content.results if "path" in r]
    found = [(r, path) for r, path in paths if path.is_file()]
    if not found:
        return ""
    names = names_of_results(content, [r for r, _ in found])
    left_out = f" {len(found) - MOST} more are beside their results." if len(found) > MOST else ""
    return (
        "<h3>With other supports</h3>\n"
        '<p class="soft">The first episodes with the right support, with a support of another class that is in the '
        "query too, and with that support without a mask. All three predictions are held against the same truth. A model "
        f"that finds the same object each time does not use its support.{left_out}</p>\n"
        + folded(zip(names, (_picture(path) for _, path in found[:MOST])))
    )


def _picture(path: Path) -> str:
    with Image.open(path) as image, BytesIO() as file:
        image.convert("RGB").save(file, "JPEG", quality=80)
        width, height = image.size
        encoded = b64encode(file.getvalue()).decode()
    description = "Rows of truth, then support and prediction: right, wrong, nothing marked"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(description, quote=True)}"><img class="sheet" '
        f'decoding="async" width="{width}" height="{height}" alt="{escape(description, quote=True)}" '
        f'src="data:image/jpeg;base64,{encoded}"></div>'
    )
