"""fss-svf models: the trained models that lie in the package, and the card of one."""

from __future__ import annotations

from pathlib import Path

from fss_svf import packed
from fss_svf.config import ModelsConfig
from fss_svf.reporting.markdown import markdown_lines

_COLUMNS = ("name", "method", "backbone", "trained on", "kB", "score")


def models(config: ModelsConfig, _: Path) -> None:
    """Print a line for each model; or, with config.model, its card."""
    if config.model is not None:
        print((packed.packaged(config.model) / packed.CARD).read_text(encoding="utf-8").rstrip("\n"))
        return
    rows = [_row(packed.packaged(name)) for name in packed.names()]
    if rows:
        print(markdown_lines([_COLUMNS, *rows], 4))
        print("\nfss-svf predict model=NAME ... uses one; fss-svf models model=NAME prints its card")
    else:
        print("no model is packed here; docs/predict.md says how to pack one's own")


def _row(folder: Path) -> tuple[str, ...]:
    content = packed.read_model(folder)
    config, trained_on = content["config"], content["trained_on"]
    fold = "all classes" if trained_on["fold"] == "all" else f"fold {trained_on['fold']}"
    size = round((folder / packed.ADAPTER).stat().st_size / 1000)
    data = f"{trained_on['dataset']}, {fold}, {len(trained_on['classes'])} classes"
    return folder.name, config["method"]["name"], config["backbone"]["name"], data, str(size), content["score"]
