"""Few-shot segmentation research framework around Singular Value Fine-tuning (SVF, NeurIPS 2022).

from fss_svf import Episode, Segmenter, build_backbone, episodes, evaluate, load_dataset, load_official

model = load_official("best.pth", method="bam", backbone="resnet50", shot=1, dataset="pascal")
prediction = model(Episode(query_image=..., support_images=..., support_masks=...))

fold = load_dataset("toy", root="data/toy").fold(0)  # any model of episodes, docs/python.md
result = evaluate(model, episodes(fold, protocol="svf", shot=1, size=473))

backbone, report = build_backbone("efficientnet_lite0")  # feature maps of any backbone, docs/backbones.md
maps = backbone(images, taps=["mid", "layer4"])

segmenter = Segmenter.load("outputs/train/NAME/STAMP")  # photographs, docs/predict.md
masks = segmenter.segment(images, segmenter.learn(example_images, example_masks))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fss_svf.api import build_backbone, episodes, evaluate, load_dataset, load_model
    from fss_svf.episode import Episode, Prediction
    from fss_svf.official import load_official
    from fss_svf.prediction.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = [
    "Episode",
    "Prediction",
    "Segmenter",
    "build_backbone",
    "episodes",
    "evaluate",
    "load_dataset",
    "load_model",
    "load_official",
]
_MODULES = {
    **dict.fromkeys(("Episode", "Prediction"), "fss_svf.episode"),
    **dict.fromkeys(("build_backbone", "episodes", "evaluate", "load_dataset", "load_model"), "fss_svf.api"),
    "Segmenter": "fss_svf.prediction.segmenter",
    "load_official": "fss_svf.official",
}


def __getattr__(name: str) -> Any:
    # At the first use: 'fss-svf --help' and error messages come at once, without torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
