"""fss-svf demo: a page in the browser, to paint an object on a few photographs and find it in others.

The page is Gradio's. Photographs are dropped as files and read as those of predict, so that EXIF, large ones and what is no
image are the same in both; the editor shows a copy of one size, and what is painted on it is brought to the photograph's.
"""

from __future__ import annotations

import errno
import hashlib
import html
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fss_svf.config import DemoConfig
from fss_svf.data.file_names import IMAGE_ENDINGS
from fss_svf.errors import ConfigError, DataError, FssError
from fss_svf.prediction.loading import check_model, load_segmenter, model_name
from fss_svf.prediction.overlays import overlay
from fss_svf.prediction.photos import read_photo
from fss_svf.prediction.segmenter import Segmenter
from fss_svf.prediction.support import SupportFeatures

log = logging.getLogger(__name__)

_MOST = 5  # examples
# Pixels of the longer side of what is painted on: a hand is no more exact, and the browser stays quick. Small photographs
# are enlarged, on which the brush would be too wide.
_LONGER = 1024
_KEPT = 8  # sets of encoded examples
_BRUSH = ("rgb(234, 67, 53)", 0.6)
_CSS = """
.gradio-container {width: 100%; max-width: 1200px !important; margin: auto}
.gradio-container [aria-label="Color"] {display: none} /* there is one */
.said .html-container {padding: 0 !important}
.said p {margin: 0; padding: .5em .8em; border-radius: 8px; background: var(--background-fill-secondary)}
#found img {max-height: 75vh; object-fit: contain}
.said p.wrong {background: #fdecea; color: #8c1d13; border-left: 4px solid #ea4335}
"""


def demo(config: DemoConfig, _: Path) -> None:
    """Serve the page until Ctrl+C. Photographs and masks lie in a temporary folder, which goes with it."""
    check_model(config)
    check_address(config.host, config.port)
    with tempfile.TemporaryDirectory(prefix="fss-svf-demo-") as folder, _gradio(folder, config.host) as gradio:
        page = make_page(gradio, Finder(load_segmenter(config), Path(folder)), model_name(config))
        page.launch(
            server_name=config.host,
            server_port=config.port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=_CSS,
        )
        log.info("the page is at http://%s:%d; Ctrl+C ends it", config.host, config.port)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        page.close(verbose=False)


@contextmanager
def _gradio(folder: str, host: str) -> Iterator[Any]:
    """The module, which is to keep its files in `folder`, to ask nobody outside, and to find itself without a proxy."""
    there = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    direct = ",".join(filter(None, [there, "localhost", "127.0.0.1", host]))
    os.environ |= {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
    }
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every request
    try:
        import gradio
    except ImportError:
        raise ConfigError("demo: the page needs gradio, which is not installed; pip install 'fss-svf[demo]'") from None
    yield gradio


def check_address(host: str, port: int) -> None:
    """Raise ConfigError, before the model is loaded, where the page cannot be served there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"port={port}: taken by another program, perhaps a demo that still runs; say port={port % 65535 + 1}"
        elif error.errno == errno.EACCES:
            why = f"port={port}: this user may not serve there; say a port from 1024 on"
        else:
            why = f"host={host}: no address of this machine; say host=127.0.0.1"
        raise ConfigError(why) from None


# ---------------------------------------------------------------------------------------------------------------------
# What the page asks


def painted_mask(layers: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8 in {0, 1} of `size`: 1 where anything is painted on any of the (h, w, 4) uint8 RGBA layers.

    Layers may be of another size than the photograph: the editor shows a copy.
    """
    height, width = size
    mask = np.zeros(size, np.uint8)
    for layer in layers:
        # A stroke's soft edge belongs to it from half its strength on.
        strokes = (layer[..., 3] > 255 * _BRUSH[1] / 2).astype(np.float32)
        # Bilinear and cut at one half, so that the outline has no steps.
        mask |= (cv2.resize(strokes, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5).astype(np.uint8)
    return mask


def paintable(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to a copy with a longer side of 1024: what is painted on."""
    height, width = image.shape[:2]
    scale = _LONGER / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


class Finder:
    """The model behind the page. Examples are encoded once, for as many photographs as follow.

    takes   the numbers of examples that the model can segment by, of 1 to 5
    """

    def __init__(self, segmenter: Segmenter, folder: Path) -> None:
        """Masks and overlays are written into `folder`. Raises ConfigError for a model that takes more than 5 examples."""
        self.segmenter, self.folder = segmenter, folder
        self._learnt: dict[str, SupportFeatures] = {}
        self.takes = [shot for shot in range(1, _MOST + 1) if self._can(shot)]
        if not self.takes:
            segmenter.check_shot(_MOST)

    def _can(self, shot: int) -> bool:
        try:
            self.segmenter.check_shot(shot)
        except ConfigError:
            return False
        return True

    def find(self, photo: Path, examples: Sequence[tuple[Path, Sequence[np.ndarray]]]) -> tuple[Path, Path, str]:
        """An overlay (JPEG) and a mask (PNG: 0, 255) of the photograph's size, and what is to be said of them.

        examples: photographs, and of each the layers painted on its copy. Those without a stroke are left out.
        Raises DataError where nothing is painted or a file is no image, ConfigError for a number the model cannot do.
        """
        painted = [(path, layers) for path, layers in examples if any(layer[..., 3].any() for layer in layers)]
        if not painted:
            raise DataError(
                "Nothing is painted yet: drop an example photograph, and paint over the whole object in it."
            )
        image = read_photo(photo)
        began = perf_counter()
        features, anew = self._learn(painted)
        learnt = perf_counter()
        (mask,) = self.segmenter.segment([image], features)
        seconds = perf_counter() - learnt
        # A folder of its own, so that the mask is saved under the photograph's name.
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        files = folder / f"{photo.stem}.overlay.jpg", folder / f"{photo.stem}.mask.png"
        Image.fromarray(overlay(image, mask)).save(files[0], quality=90)
        Image.fromarray(mask * 255).save(files[1])
        height, width = mask.shape
        share = f"{100 * mask.mean():.1f}% of" if mask.any() else "nothing found in"
        encoded = f", and {learnt - began:.1f} s to encode the examples" if anew else ""
        by = f"{len(painted)} example{'s' * (len(painted) > 1)}"
        return *files, f"{photo.name}: {share} {width} x {height} pixels, by {by}. {seconds:.2f} s{encoded}."

    def _learn(self, examples: Sequence[tuple[Path, Sequence[np.ndarray]]]) -> tuple[SupportFeatures, bool]:
        """The features of the examples, and whether they were encoded just now."""
        told = hashlib.sha256()
        for path, layers in examples:
            # Gradio keeps an upload in a folder named after its content.
            told.update(b"".join([str(path).encode(), *(layer.tobytes() for layer in layers)]))
        key = told.hexdigest()
        anew = key not in self._learnt
        if anew:
            images = [read_photo(path) for path, _ in examples]
            masks = [painted_mask(layers, image.shape[:2]) for image, (_, layers) in zip(images, examples)]
            features = self.segmenter.learn(images, masks, [path.name for path, _ in examples])
            self._learnt = dict([*self._learnt.items(), (key, features)][-_KEPT:])
        return self._learnt[key], anew


# ---------------------------------------------------------------------------------------------------------------------
# The page


def make_page(gr: Any, finder: Finder, model: str) -> Any:
    """gradio.Blocks: examples on the left, each below the last; the photograph to search and what is found on the right."""
    segmenter, takes = finder.segmenter, finder.takes
    many = "one to five photographs" if len(takes) == _MOST else f"{' or '.join(map(str, takes))} photographs"
    with gr.Blocks(title="fss-svf", analytics_enabled=False) as page:
        gr.Markdown(
            "# Show it once, find it elsewhere\n"
            f"Paint over the object in {'a photograph' if takes == [1] else many}, then drop another to find it there."
        )
        last = gr.State(None)  # the photograph that was searched, to search it again
        with gr.Row():
            with gr.Column(min_width=340):
                gr.Markdown("### 1. Examples: paint over the whole object")
                slots = [_Slot(gr, number) for number in range(1, takes[-1] + 1)]
            with gr.Column(min_width=340):
                gr.Markdown("### 2. A photograph to find it in")
                drop = gr.File(label="Photograph", file_types=list(IMAGE_ENDINGS), height=130, elem_id="query")
                button = gr.Button("Find it", variant="primary", elem_id="find")
                said = gr.HTML(visible=False, elem_classes="said", elem_id="said")
                shown = gr.Image(
                    label="Found", interactive=False, visible=False, buttons=["fullscreen"], elem_id="found"
                )
                saved = gr.DownloadButton("Save the mask (PNG)", visible=False, elem_id="save")
        gr.Markdown(f"<small>Model: `{model}` on {segmenter.device}, {segmenter.transform.size} px</small>")

        def find(photo: str | None, *given: Any) -> tuple[Any, ...]:
            nothing = gr.update(visible=False)
            if photo is None:
                return nothing, nothing, _said(gr, "No photograph to search yet: drop one above.", wrong=True)
            examples = [(Path(path), value["layers"]) for path, value in zip(given[::2], given[1::2]) if path and value]
            try:
                overlaid, mask, text = finder.find(Path(photo), examples)
            except FssError as error:
                return nothing, nothing, _said(gr, _by_name(error, photo, *given[::2]), wrong=True)
            return gr.update(value=overlaid, visible=True), gr.update(value=mask, visible=True), _said(gr, text)

        given = [part for slot in slots for part in (slot.drop, slot.editor)]
        searched: Mapping[str, Any] = {
            "fn": find,
            "inputs": [last, *given],
            "outputs": [shown, saved, said],
            "concurrency_id": "model",
        }
        # The place to drop is empty again at once, for the next photograph.
        drop.upload(lambda photo: (photo, None), drop, [last, drop], queue=False).then(**searched)
        button.click(**searched)
        for slot, following in zip(slots, [*slots[1:], None]):
            slot.connect(gr, following)
    return page


class _Slot:
    """The place of one example: the file that is dropped there, and its copy to paint on. The first is there at once."""

    def __init__(self, gr: Any, number: int) -> None:
        self.drop = gr.File(
            label=f"Example {number}",
            file_types=list(IMAGE_ENDINGS),
            height=130,
            visible=number == 1,
            elem_id=f"example-{number}",
        )
        self.said = gr.HTML(visible=False, elem_classes="said")
        self.editor = gr.ImageEditor(
            show_label=False,
            visible=False,
            height="min(460px, 95vw)",  # as wide on a phone
            sources=[],
            transforms=[],
            layers=False,
            brush=gr.Brush(colors=[_BRUSH], default_color=_BRUSH, color_mode="fixed"),
            buttons=["fullscreen"],
            elem_id=f"paint-{number}",
        )

    def connect(self, gr: Any, following: _Slot | None) -> None:
        """A photograph in this place opens its editor, and the next place."""

        def show(photo: str | None) -> tuple[Any, ...]:
            hidden = gr.update(value=None, visible=False)
            if photo is None:
                return hidden, _said(gr, ""), gr.skip()
            try:
                copy = paintable(read_photo(Path(photo)))
            except DataError as error:
                return hidden, _said(gr, _by_name(error, photo), wrong=True), gr.skip()
            shown = gr.update(value={"background": copy, "layers": [], "composite": copy}, visible=True)
            return shown, _said(gr, ""), gr.update(visible=True)

        after = following.drop if following else gr.State()
        # The editor's bin throws the photograph away too; here it means: paint anew.
        for event in (self.drop.change, self.editor.clear):
            event(show, self.drop, [self.editor, self.said, after], queue=False)


def _said(gr: Any, text: str, wrong: bool = False) -> Any:
    """A line for a gr.HTML; without text it takes no place."""
    return gr.update(value=f"<p{' class=wrong role=alert' * wrong}>{html.escape(text)}</p>", visible=bool(text))


def _by_name(error: FssError, *photos: str | None) -> str:
    """What went wrong, with a photograph called by its name in place of where its upload lies."""
    text = str(error)
    for photo in filter(None, photos):
        text = text.replace(photo, Path(photo).name)
    return text
