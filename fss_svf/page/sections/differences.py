"""Paired differences: each row against another one on the same episodes, as a table and a forest plot."""

from __future__ import annotations

from html import escape

from fss_svf.page.content import Content, folded, name_of, note, shots_of_table, swatch, title_of
from fss_svf.page.drawings.forest import forest
from fss_svf.page.paired import Paired, paired_differences
from fss_svf.reporting.rows import Row
from fss_svf.reporting.table import Table

_SAYS = (
    "mIoU of each row less that of another one, on the same episodes, the mean over the folds that both have. 95 % "
    "intervals: over episodes (thick) by the bootstrap, and over training seeds (thin) by Student's t, of several. "
    "Bold: no interval holds 0. Of many differences some are bold by chance."
)


def differences(content: Content) -> str:
    parts = [
        part for table in content.tables for shot in shots_of_table(table) for part in _of_shot(content, table, shot)
    ]
    if not parts:
        return "<p>No two rows of a table have the same episodes in an episodes.csv.</p>"
    # Opening one closes the others: the page shows one reference at a time.
    return note(_SAYS) + folded(parts, "against")


def _of_shot(content: Content, table: Table, shot: int) -> list[tuple[str, str]]:
    found = []
    for number, (reference, pairs) in enumerate(paired_differences(table, content.episodes, shot)):
        against = f"{shot}-shot, against {content.look(reference).name}"
        plot = forest(
            name_of("differences", table, f"{shot}shot", number),
            f"Difference in mIoU, {against}",
            [(content.look(pair.row), pair) for pair in pairs],
        )
        title = f"{against}: {title_of(table)}"
        found.append((title, f'<div class="beside">{_table(content, reference, pairs)}{content.show(plot)}</div>'))
    return found


def _table(content: Content, reference: Row, pairs: list[Paired]) -> str:
    several = any(len(pair.trainings) > 1 for pair in pairs)
    heads = ["row", "difference", "over episodes", *(["over trainings", "trainings"] if several else []), "folds"]
    kinds = ["", *[' class="number"'] * (len(heads) - 1)]
    lines = []
    for pair in pairs:
        value = f"{100 * pair.difference:+.2f}"
        cells = [
            f'<td class="number" data-value="{100 * pair.difference}">{f"<b>{value}</b>" if pair.clear else value}</td>',
            f'<td class="number">{_ends(pair.interval)}</td>',
        ]
        if several:
            cells.append(f'<td class="number">{_ends(pair.trainings_interval)}</td>')
            cells.append(f'<td class="number">{len(pair.trainings)}</td>')
        cells.append(f'<td class="number">{", ".join(map(str, pair.folds))}</td>')
        look = content.look(pair.row)
        lines.append(f'<tbody><tr><th scope="row">{swatch(look)}{escape(look.name)}</th>{"".join(cells)}</tr></tbody>')
    head = "".join(f'<th scope="col"{kind}>{text}</th>' for kind, text in zip(kinds, heads))
    label = escape(f"Differences to {content.look(reference).name}", quote=True)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="numbers">'
        f"<thead><tr>{head}</tr></thead>{''.join(lines)}</table></div>"
    )


def _ends(of: tuple[float, float] | None) -> str:
    return "-" if of is None else f"{100 * of[0]:+.2f} to {100 * of[1]:+.2f}"
