"""What a method adds to the seam that segments the base classes too, by a base learner it holds (BAM)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fss_svf.config import FoldNumber
from fss_svf.episode import Features
from fss_svf.methods.method import FewShotMethod
from fss_svf.registry import Choice


class BaseClassMethod(FewShotMethod):
    """A method that also segments the n base classes of its fold.

    Its training episodes have Episode.base_mask and base_class, and an evaluation measures the base classes beside the
    novel ones.
    """

    # Names in Prediction.aux of (B, 2, H, W) logits that are measured beside the method's own, as `miou_NAME` in training.
    further_predictions: tuple[str, ...] = ()
    # Options that `evaluate checkpoint=... +method.KEY=` may change; any other is refused.
    evaluation_options: tuple[str, ...] = ()
    # Dataset, fold and classes that the base learner was trained on, so that a leak is refused.
    trained_on: Mapping[str, Any] | None = None

    @abstractmethod
    def segment_base(self, query: Features, size: tuple[int, int]) -> Tensor:
        """Logits (B, n + 1, H, W) of background and the base classes at `size`, which no support changes."""

    def check_run(self, dataset: str, fold: FoldNumber, classes: Sequence[str], backbone: Choice) -> None:
        """Raise ConfigError or WeightsError where the method cannot train on these base classes and this backbone."""

    def hold_out(self, base_classes: Sequence[int]) -> None:
        """From now on evaluate as if these base classes, numbered like Episode.base_mask, were unknown to the method."""

    def fit_state(self, state: Mapping[str, Any]) -> None:
        """Make the parts whose number or shape the weights decide those of a state dict, before it is loaded."""


def further_predictions(method: FewShotMethod) -> tuple[str, ...]:
    """The names in Prediction.aux that are measured beside the method's own logits."""
    return method.further_predictions if isinstance(method, BaseClassMethod) else ()
