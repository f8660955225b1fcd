"""A model for photographs: it learns a class from a few examples, and segments it in as many others as you like.

from fss_svf import Segmenter

segmenter = Segmenter.load("outputs/train/NAME/STAMP")
cats = segmenter.learn(images, masks)           # once
masks = segmenter.segment(more_images, cats)    # as often as you like
labels = segmenter.segment(more_images, [cats, dogs])  # 1 where a cat is, 2 where a dog is
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fss_svf import tuned
from fss_svf.config import Precision, Protocol, TrainConfig, from_mapping, to_mapping
from fss_svf.data.augment import EvalTransform
from fss_svf.episode import Features
from fss_svf.errors import ConfigError, DataError, WeightsError
from fss_svf.evaluation.at_label import rows_at_label
from fss_svf.evaluation.conditions import warn_of_drawings
from fss_svf.evaluation.inference import Inference
from fss_svf.evaluation.untrained import untrained_model
from fss_svf.evaluation.ways import foreground_odds, join_ways
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import choose_device, place, restore_model, without_weights
from fss_svf.packed import load_trained
from fss_svf.prediction.examples import MOST_CLASSES
from fss_svf.prediction.support import SupportFeatures

log = logging.getLogger(__name__)

_STRIP = 10_000_000  # pixels of a mask at a time
# Pixels of the input without a checkpoint: that of the papers' tests on Pascal.
_SIZE = 473
_INPUT = Protocol(
    "predict", 1, 1, 0, queries="in_order", resize="pad", label="exact", never_drawn="error"
)  # only how an image becomes input, and logits a mask


class Segmenter:
    """A model on a device, and how its input is made. What it predicts is what an evaluation with label=exact does.

    identity  a hash over weights, input and `options`: what one model has learnt, another cannot use
    """

    def __init__(
        self,
        model: FewShotMethod,
        transform: EvalTransform,
        protocol: Protocol,
        device: torch.device,
        precision: Precision = "float32",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """The model is merged and placed for good. options: of the method, where no checkpoint's weights tell it apart."""
        self.model, self.transform, self.device = model.eval(), transform, device
        self.protocol = replace(protocol, label="exact")
        self.identity = _identity(model.state_dict(), transform, options)
        place(model, device)
        tuned.merge(model)
        self.inference = Inference(model, device, precision)

    @classmethod
    def load(
        cls,
        checkpoint: Path | str,
        device: str | torch.device = "auto",
        precision: Precision = "float32",
        shots: Literal["train_k", "mean"] = "train_k",
        size: int | None = None,
        weights: str | None = None,
    ) -> Segmenter:
        """Of a run folder of train, a checkpoint file, or the folder of a packed model (fss_svf.packaged(NAME)).

        The input is as in the validation of its training.

        shots: as in conf/predict.yaml. size: of the input, where it is to be another. weights: where the pretrained weights
        are now, where they have moved since the training. Raises WeightsError, ConfigError.
        """
        where = choose_device(device)
        content = load_trained(Path(checkpoint))
        trained = from_mapping(TrainConfig, content["config"])
        what, protocol = f"checkpoint={checkpoint}", trained.protocol
        warn_of_drawings(what, trained.dataset.name)
        model = restore_model(
            trained.method, trained.backbone, trained.tuning, content["model"], what, content.get("base"), weights
        )
        model.shots = "mean" if shots == "mean" else "method"
        size = size or protocol.size or trained.recipe.tested_at
        model.check_size(size, "size", protocol.resize == "squash")
        return cls(model, EvalTransform(size, protocol.resize, protocol.pad), protocol, where, precision)

    @classmethod
    def untrained(
        cls,
        method: str | Mapping[str, Any] = "prototype",
        backbone: str | Mapping[str, Any] = "efficientnet_lite0",
        device: str | torch.device = "auto",
        precision: Precision = "float32",
        shots: Literal["train_k", "mean"] = "train_k",
        size: int | None = None,
    ) -> Segmenter:
        """Of a method without a trained parameter on a pretrained backbone: no checkpoint is needed.

        method, backbone: a name, or a mapping with `name` and options, as {"name": "prototype", "stage": "deep"}. size: of
        the input; None: the size nearest to 473 that the backbone takes. Raises ConfigError, WeightsError.
        """
        where = choose_device(device)
        named = {"name": method} if isinstance(method, str) else method
        model, report, *choices = untrained_model(named, {"name": backbone} if isinstance(backbone, str) else backbone)
        model.shots = "mean" if shots == "mean" else "method"
        size = size or min(model.backbone.sizes.nearest(_SIZE), key=lambda near: abs(near - _SIZE))
        model.check_size(size)
        if report.digest is None:
            log.warning(
                "backbone: random weights, so the masks mean nothing; give it pretrained ones: backbone.weights=FILE"
            )
        # The backbone's weights are told by their values, not by where the file lies.
        options = {choice.name: to_mapping(choice.options) for choice in map(without_weights, choices)}
        return cls(model, EvalTransform(size, _INPUT.resize, _INPUT.pad), _INPUT, where, precision, options)

    def learn(
        self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], names: Sequence[str] = ()
    ) -> SupportFeatures:
        """Examples of a class: K images (H, W, 3) uint8 RGB, and masks (H, W) uint8 with 1 on it, 255 where ignored.

        Raises ConfigError for a K that the method cannot do, DataError for a mask of another size or without an object.
        """
        if not images or len(images) != len(masks):
            raise DataError(
                f"learn: expected as many masks as images, at least one, got {len(images)} and {len(masks)}"
            )
        self.check_shot(len(images))
        names = names or [f"example {number}" for number in range(1, len(images) + 1)]
        with self.inference.running():
            rows = [self._learn(*example) for example in zip(images, masks, names)]
        return SupportFeatures(tuple(rows), self.identity, tuple(names))

    def segment(
        self, images: Sequence[np.ndarray], support: SupportFeatures | Sequence[SupportFeatures]
    ) -> list[np.ndarray]:
        """Of each (H, W, 3) uint8 RGB image the mask of the class, (H, W) uint8 in {0, 1}. All are encoded together.

        support: of one class, or of up to 254: then n, from 1 on, stands where the n-th is the likeliest (join_ways).
        Raises WeightsError for features of another model, ConfigError for a K that the method cannot do.
        """
        classes = [support] if isinstance(support, SupportFeatures) else list(support)
        if not 1 <= len(classes) <= MOST_CLASSES:
            raise ConfigError(f"support: expected 1 to {MOST_CLASSES} classes, got {len(classes)}; leave some out")
        for one in classes:
            self.check_features(one)
            self.check_shot(len(one.rows))
        if not images:
            return []
        side, masks = self.transform.size, []
        with self.inference.running():
            none = torch.zeros(0, side, side, dtype=torch.uint8)
            queries, _ = self.inference.encode(self._input(images), none, torch.arange(len(images)), torch.arange(0))
            examples = [
                [{name: self._placed(value) for name, value in row.items()} for row in one.rows] for one in classes
            ]
            for query, image in zip(queries, images):
                # A class at a time: each may have another number of examples.
                compared = [self.inference.compare(query, rows) for rows in examples]
                logits = [self.inference.segment(query, [rows], (side, side)).logits for rows in compared]
                masks.append(self._mask(torch.cat(logits), image.shape[0], image.shape[1]))
        return masks

    def _placed(self, value: Tensor) -> Tensor:
        """A feature of the examples on the device, in float32 where they were encoded in half precision and this is not."""
        half = value.dtype in (torch.bfloat16, torch.float16) and self.inference.precision in ("float32", "tf32")
        return value.to(self.device, torch.float32 if half else value.dtype)

    def _mask(self, logits: Tensor, height: int, width: int) -> np.ndarray:
        """(height, width) uint8 of (N, 2, h, w) logits, in strips: those of a large photograph would fill the memory."""
        strip = max(1, _STRIP // (width * len(logits)))
        mask = np.empty((height, width), np.uint8)
        for start in range(0, height, strip):
            stop = min(height, start + strip)
            rows = rows_at_label(logits, (height, width), self.protocol, start, stop)
            mask[start:stop] = join_ways(foreground_odds(rows)[None], threshold=0)[0].cpu().numpy()
        return mask

    def check_shot(self, shot: int) -> None:
        """Raise ConfigError where the model cannot segment by so many examples."""
        try:
            self.model.check_shot(shot)
        except ConfigError as error:
            why = str(error).removeprefix(f"shot={shot}: ").split(";")[0]
            raise ConfigError(
                f"{shot} examples: {why}; give it as many as in its training, or take the plain mean of any number: "
                "shots=mean"
            ) from None

    def check_features(self, support: SupportFeatures, what: str = "support") -> None:
        """Raise WeightsError where another model has learnt it; `what` is its file."""
        if support.model != self.identity:
            raise WeightsError(
                f"{what}: encoded by another checkpoint ({support.model}) than this one ({self.identity}); give that "
                "checkpoint, or the folder of the examples to encode them anew"
            )

    def _learn(self, image: np.ndarray, mask: np.ndarray, name: str) -> Features:
        if mask.shape != image.shape[:2]:
            raise DataError(f"{name}: a mask of {mask.shape} for an image of {image.shape[:2]}; they must be the same")
        small = self.transform.label(mask)
        if not (small == 1).any():
            raise DataError(
                f"{name}: the object has {int((mask == 1).sum()):,} pixels and none at the input size of "
                f"{self.transform.size}; crop the photograph around it, or mask the object (1, or white)"
            )
        _, (row,) = self.inference.encode(
            self._input([image]), torch.from_numpy(small)[None], torch.arange(0), torch.arange(1)
        )
        return {key: value.cpu() for key, value in row.items()}

    def _input(self, images: Sequence[np.ndarray]) -> Tensor:
        """(B, 3, size, size) uint8."""
        return torch.from_numpy(np.stack([self.transform.image(image) for image in images])).permute(0, 3, 1, 2)


def _identity(state: Mapping[str, Tensor], transform: EvalTransform, options: Mapping[str, Any] | None) -> str:
    """12 hex digits over the weights, what makes the input, and the options if there are any."""
    told = hashlib.sha256(json.dumps(vars(transform)).encode())
    if options is not None:
        told.update(json.dumps(options, sort_keys=True).encode())
    for name, value in state.items():
        told.update(name.encode())
        told.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:12]
