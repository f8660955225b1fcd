"""A trained model for photographs: it learns a class from a few examples, and segments it in as many others as you like.

from fss_svf import Segmenter

segmenter = Segmenter.load("outputs/train/NAME/STAMP")
cats = segmenter.learn(images, masks)           # once
masks = segmenter.segment(more_images, cats)    # as often as you like
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fss_svf import svf
from fss_svf.backbones.reading import read_checkpoint
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import Precision, Protocol, TrainConfig, check_test_size, from_mapping
from fss_svf.data.augment import EvalTransform
from fss_svf.episode import Code, normalize
from fss_svf.errors import ConfigError, DataError, WeightsError
from fss_svf.evaluation.at_label import rows_at_label
from fss_svf.files import appearing_whole
from fss_svf.methods.method import FewShotMethod, regroup
from fss_svf.model import choose_device, place, restore_model
from fss_svf.precision import computing

_FORMAT = 1
_STRIP = 10_000_000  # pixels of a mask at a time


@dataclass(frozen=True)
class SupportCode:
    """What a model has learnt of a class from K examples.

    rows   of each example its code, of one row, on the CPU
    model  whose it is: Segmenter.identity
    names  of the examples, to say where it comes from
    """

    rows: tuple[Code, ...]
    model: str
    names: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, "model": self.model, "names": list(self.names), "support": list(self.rows)}
        with appearing_whole(path) as unfinished:
            torch.save(content, unfinished)

    @classmethod
    def load(cls, path: Path) -> SupportCode:
        """Raises WeightsError for a file that is missing, damaged or something else."""
        content = read_checkpoint(path)
        if set(content) != {"format", "model", "names", "support"} or content["format"] != _FORMAT:
            raise WeightsError(f"{path}: no encoded examples that this version of predict has saved; give their folder")
        return cls(tuple(content["support"]), content["model"], tuple(content["names"]))


class Segmenter:
    """A model on a device, and how its input is made. What it predicts is what an evaluation with label=exact does.

    identity  a hash over weights and input: what one model has learnt, another cannot use
    """

    def __init__(
        self,
        model: FewShotMethod,
        transform: EvalTransform,
        protocol: Protocol,
        device: torch.device,
        precision: Precision = "float32",
    ) -> None:
        """The model is merged and placed for good."""
        self.model, self.transform, self.device, self.precision = model.eval(), transform, device, precision
        self.protocol = replace(protocol, label="exact")
        self.identity = _identity(model.state_dict(), transform)
        self._dtype = next(model.backbone.parameters()).dtype
        place(model, device)
        svf.merge(model)

    @classmethod
    def load(
        cls,
        checkpoint: Path | str,
        device: str | torch.device = "auto",
        precision: Precision = "float32",
        shots: Literal["train_k", "mean"] = "train_k",
        size: int | None = None,
    ) -> Segmenter:
        """Of a run folder of train or a checkpoint file; the input is as in the validation of its training.

        shots: as in conf/predict.yaml. size: of the input, where it is to be another. Raises WeightsError, ConfigError.
        """
        where = choose_device(device)
        content = load_checkpoint(Path(checkpoint), "train")
        trained = from_mapping(TrainConfig, content["config"])
        what, protocol = f"checkpoint={checkpoint}", trained.protocol
        model = restore_model(trained.method, trained.backbone, trained.tuning, content["model"], what)
        model.shots = "mean" if shots == "mean" else "own"
        if size is not None:
            check_test_size(size, protocol.resize)
        size = size or protocol.size or trained.recipe.tested_at
        return cls(model, EvalTransform(size, protocol.resize, protocol.pad), protocol, where, precision)

    def learn(
        self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], names: Sequence[str] = ()
    ) -> SupportCode:
        """Examples of a class: K images (H, W, 3) uint8 RGB, and masks (H, W) uint8 with 1 on it, 255 where ignored.

        Raises ConfigError for a K that the method cannot do, DataError for a mask of another size or without an object.
        """
        if not images or len(images) != len(masks):
            raise DataError(
                f"learn: expected as many masks as images, at least one, got {len(images)} and {len(masks)}"
            )
        self.check_shot(len(images))
        names = names or [f"example {number}" for number in range(1, len(images) + 1)]
        with torch.inference_mode():
            rows = [self._learn(*example) for example in zip(images, masks, names)]
        return SupportCode(tuple(rows), self.identity, tuple(names))

    def segment(self, images: Sequence[np.ndarray], code: SupportCode) -> list[np.ndarray]:
        """Of each (H, W, 3) uint8 RGB image the mask of the class, (H, W) uint8 in {0, 1}. All are encoded together.

        Raises WeightsError for a code that another model has learnt, ConfigError for a K that the method cannot do.
        """
        self.check_code(code)
        self.check_shot(len(code.rows))
        if not images:
            return []
        side = self.transform.size
        with torch.inference_mode(), computing(self.device, self.precision):
            queries = self.model.encode_query(self._input(images))
            supports = [{name: value.to(self.device) for name, value in row.items()} for row in code.rows]
            masks = []
            # One after the other, as in an evaluation: all pairs of positions of a batch would fill the memory.
            for number, image in enumerate(images):
                query = {name: value[number : number + 1] for name, value in queries.items()}
                support = regroup(_joined([self._compared(query, one) for one in supports]), len(supports))
                logits = self.model.segment(query, support, (side, side)).logits
                masks.append(self._mask(logits, image.shape[0], image.shape[1]))
        return masks

    def _mask(self, logits: Tensor, height: int, width: int) -> np.ndarray:
        """(height, width) uint8 of (1, 2, h, w) logits, in strips: those of a large photograph would fill the memory."""
        strip = max(1, _STRIP // width)
        mask = np.empty((height, width), np.uint8)
        for start in range(0, height, strip):
            stop = min(height, start + strip)
            rows = rows_at_label(logits, (height, width), self.protocol, start, stop)
            mask[start:stop] = rows[0].argmax(0).to(torch.uint8).cpu().numpy()
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

    def check_code(self, code: SupportCode, what: str = "support") -> None:
        """Raise WeightsError where another model has learnt it; `what` is its file."""
        if code.model != self.identity:
            raise WeightsError(
                f"{what}: encoded by another checkpoint ({code.model}) than this one ({self.identity}); give that "
                "checkpoint, or the folder of the examples to encode them anew"
            )

    def _learn(self, image: np.ndarray, mask: np.ndarray, name: str) -> Code:
        if mask.shape != image.shape[:2]:
            raise DataError(f"{name}: a mask of {mask.shape} for an image of {image.shape[:2]}; they must be the same")
        small = self.transform.label(mask)
        if not (small == 1).any():
            raise DataError(
                f"{name}: the object has {int((mask == 1).sum()):,} pixels and none at the input size of "
                f"{self.transform.size}; crop the photograph around it, or mask the object (1, or white)"
            )
        with computing(self.device, self.precision):
            code = self.model.encode_support(self._input([image]), torch.from_numpy(small)[None].to(self.device))
            return {key: value.cpu() for key, value in self.model.kept(code).items()}

    def _input(self, images: Sequence[np.ndarray]) -> Tensor:
        """(B, 3, size, size), normalised, on the device."""
        made = torch.from_numpy(np.stack([self.transform.image(image) for image in images]))
        return normalize(made.permute(0, 3, 1, 2).to(self.device)).to(self._dtype)

    def _compared(self, query: Code, support: Code) -> Code:
        """The code of an example, with what comparing says in place of what only that reads."""
        found = self.model.compare(query, regroup(support, 1))
        kept = {name: value for name, value in support.items() if name not in self.model.compared}
        return {**kept, **{name: value[0] for name, value in found.items()}}


def _joined(rows: Sequence[Code]) -> Code:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _identity(state: Mapping[str, Tensor], transform: EvalTransform) -> str:
    """12 hex digits over the weights and what makes the input."""
    told = hashlib.sha256(json.dumps(vars(transform)).encode())
    for name, value in state.items():
        told.update(name.encode())
        told.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:12]
