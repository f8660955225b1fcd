"""Few-shot segmentation research framework around Singular Value Fine-tuning (SVF, NeurIPS 2022).

fold = fss_svf.load_dataset("pascal").fold(0)
model = fss_svf.train("panet", fold, backbone="efficientnet_lite0", tuning="svf")
result = fss_svf.evaluate(model, fold, protocol="svf", shot=5)  # or any function of an Episode

docs/python.md has examples of everything in __all__.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fss_svf.api import build_backbone, build_model, episodes, evaluate, load_dataset, load_model, train
    from fss_svf.config import Protocol
    from fss_svf.episode import Episode, Prediction
    from fss_svf.official import load_official
    from fss_svf.packed import packaged
    from fss_svf.prediction.segmenter import Segmenter

__version__ = "0.2.0"
__all__ = [
    "Episode",
    "Prediction",
    "Protocol",
    "Segmenter",
    "build_backbone",
    "build_model",
    "episodes",
    "evaluate",
    "load_dataset",
    "load_model",
    "load_official",
    "packaged",
    "train",
]
_MODULES = {
    "Episode": "fss_svf.episode",
    "Prediction": "fss_svf.episode",
    "Protocol": "fss_svf.config",
    "Segmenter": "fss_svf.prediction.segmenter",
    "load_official": "fss_svf.official",
    "packaged": "fss_svf.packed",
}


def __getattr__(name: str) -> Any:
    # At the first use: 'fss-svf --help' and error messages come at once, without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "fss_svf.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
