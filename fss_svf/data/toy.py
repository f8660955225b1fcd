"""dataset=toy: rendered into a VOC-style folder, so that the readers of real data are used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from PIL import Image

from fss_svf.config import require
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.dataset import DatasetOptions, Split, SplitName
from fss_svf.data.images import write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.toy_render import CLASS_NAMES, render
from fss_svf.data.voc import VocFolder, index_named
from fss_svf.errors import DataError
from fss_svf.files import atomic_write
from fss_svf.registry import DATASETS


@dataclass(frozen=True)
class ToyOptions(DatasetOptions):
    """The number of images to render for each split, and the seed."""

    train_images: int
    val_images: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("train_images", "val_images"):
            require(getattr(self, key) >= 1, key, "a whole number >= 1", getattr(self, key))
        require(self.seed >= 0, "seed", "a whole number >= 0", self.seed)


@DATASETS.register("toy", ToyOptions)
class Toy(VocFolder):
    name = "toy"
    class_names = CLASS_NAMES
    options: ToyOptions

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        o = self.options
        lists = self.options.root / "ImageSets" / "Segmentation"
        for folder in (self.images, self.labels, lists, o.prepared):
            folder.mkdir(parents=True, exist_ok=True)
        total = o.train_images + o.val_images
        names = [toy_name(number) for number in range(total)]
        # The index of this step only records that the rendering is complete.
        build_index(
            o.prepared / "rendered.npz",
            range(total),
            partial(render_files, self.images, self.labels, o.seed),
            CLASS_NAMES,
            _made_from(o),
            workers,
            "toy rendering",
            files=lambda number: (self.images / f"{names[number]}.jpg", self.labels / f"{names[number]}.png"),
        )
        for split, of_split in (("train", names[: o.train_images]), ("val", names[o.train_images :])):
            with atomic_write(lists / f"{split}.txt") as unfinished:  # another preparation may read it
                unfinished.write_text("\n".join(of_split) + "\n")
        return super().prepare(workers)

    def split(self, name: SplitName) -> Split:
        """As VocFolder.split. Raises DataError also if the images were rendered with other options."""
        o, split = self.options, super().split(name)
        wanted = {"train": o.train_images, "val": o.val_images}[name]
        rendered = o.prepared / "rendered.npz"
        if len(split.index) != wanted or (rendered.exists() and Index.load(rendered).fingerprint != _made_from(o)):
            raise DataError(
                f"dataset=toy: prepared with other options than dataset.train_images={o.train_images}, val_images="
                f"{o.val_images}, seed={o.seed}, or by another release; run {self._prepare}, or use the options it was "
                "prepared with"
            )
        return split


def _made_from(options: ToyOptions) -> str:
    # The drawing code is included: another release may draw other pictures.
    code = [(files("fss_svf.data") / name).read_text() for name in ("toy_render.py", "toy_things.py")]
    return fingerprint("toy", options.seed, options.train_images + options.val_images, code)


def toy_name(number: int) -> str:
    """File name of a rendered image."""
    return f"toy_{number:06d}"


def render_files(images: Path, labels: Path, seed: int, number: int) -> ImageRow:
    """Render image `number` to its JPEG and its label PNG."""
    image, label = render(seed, number)
    name = toy_name(number)
    with atomic_write(images / f"{name}.jpg") as unfinished:
        Image.fromarray(image).save(unfinished, format="JPEG", quality=95)
    write_label(labels / f"{name}.png", label)
    return index_named(images, labels, name)
