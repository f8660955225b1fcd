"""How IoU is distributed over episodes, and over the sizes of objects."""

from __future__ import annotations

import numpy as np

from fss_svf.page.content import Content, folded, folds_of, name_of, note, shots_of_table, title_of
from fss_svf.page.drawings.histogram import histogram
from fss_svf.page.drawings.sizes import size_plot
from fss_svf.page.episodes import of_row
from fss_svf.page.looks import Look
from fss_svf.page.plots import Plot
from fss_svf.reporting.table import Table

_SAYS = (
    "Single episodes of all folds and training seeds. mIoU is computed from sums of pixels, so it is not the mean of these "
    "values. Sizes: eight bins with as many episodes each; lines are 95 % intervals of the mean."
)


def distribution(content: Content) -> str:
    parts = []
    for table in content.tables:
        for shot in shots_of_table(table):
            if shown := content.show(*_plots(content, table, shot)):
                parts.append((f"{shot}-shot: {title_of(table)}", shown))
    return note(_SAYS) + folded(parts) if parts else "<p>No result has an episodes.csv beside it.</p>"


def _plots(content: Content, table: Table, shot: int) -> list[Plot]:
    ious: list[tuple[Look, np.ndarray]] = []
    sizes: list[tuple[Look, np.ndarray, np.ndarray]] = []
    for row in table.rows:
        found = [one for f in folds_of(table, shot) for one in of_row(content.episodes, row, shot, f).values()]
        if not found:
            continue
        look, values = content.look(row), np.concatenate([one.ious for one in found])
        ious.append((look, values))
        shares = [one.sizes for one in found]
        # Files of version 0.1 have no sizes.
        known = [share for share in shares if share is not None]
        if len(known) == len(shares):
            sizes.append((look, np.concatenate(known), values))
    plots = []
    if ious:
        plots.append(histogram(name_of("histogram", table, f"{shot}shot"), f"IoU of episodes, {shot}-shot", ious))
    if sizes:
        plots.append(size_plot(name_of("sizes", table, f"{shot}shot"), f"IoU against object size, {shot}-shot", sizes))
    return plots
