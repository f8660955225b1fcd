"""Few-shot segmentation research framework around Singular Value Fine-tuning (SVF, NeurIPS 2022).

from fss_svf import Episode, load_official

model = load_official("best.pth", method="bam", backbone="resnet50", shot=1, dataset="pascal")
prediction = model(Episode(query_image=..., support_images=..., support_masks=...))

segmenter = Segmenter.load("outputs/train/NAME/STAMP")  # photographs, docs/predict.md
masks = segmenter.segment(images, segmenter.learn(example_images, example_masks))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fss_svf.episode import Episode
    from fss_svf.official import load_official
    from fss_svf.prediction.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = ["Episode", "Segmenter", "load_official"]


def __getattr__(name: str) -> Any:
    # At the first use: 'fss-svf --help' and error messages come at once, without torch.
    if name == "Episode":
        from fss_svf.episode import Episode

        return Episode
    if name == "load_official":
        from fss_svf.official import load_official

        return load_official
    if name == "Segmenter":
        from fss_svf.prediction.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
