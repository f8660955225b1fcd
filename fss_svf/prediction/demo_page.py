"""The page of demo: a tab for each class with its examples on the left, a photograph and what is found in it on the right.

Photographs are dropped as files and read as those of predict, so that EXIF, large ones and what is no image are the same in
both; the editor shows a copy of one size, and what is painted on it is brought to the photograph's.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.data.file_names import IMAGE_ENDINGS
from fss_svf.errors import DataError, FssError
from fss_svf.prediction.demo_drafts import CLASSES, Draft, Drafts
from fss_svf.prediction.demo_sample import copy_sample, has_sample
from fss_svf.prediction.finder import MOST, STRENGTH, Finder, paintable, strokes_of
from fss_svf.prediction.photos import read_photo

_COLOUR = (234, 67, 53)
_BRUSH = (f"rgb{_COLOUR}", STRENGTH)
_TABS = range(1, CLASSES + 1)
CSS = """
.gradio-container {width: 100%; max-width: 1200px !important; margin: auto}
.gradio-container [aria-label="Color"] {display: none} /* there is one */
.said .html-container {padding: 0 !important}
.said p {margin: 0; padding: .5em .8em; border-radius: 8px; background: var(--background-fill-secondary)}
#found img {max-height: 75vh; object-fit: contain}
.said p.wrong {background: #fdecea; color: #8c1d13; border-left: 4px solid #ea4335}
"""
# A browser's tab keeps a key of its own, by which the page finds what was there before a reload.
_KEY = """() => {
  const fresh = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), n => n.toString(16)).join("");
  const key = sessionStorage.getItem("fss-svf") || fresh();
  sessionStorage.setItem("fss-svf", key);
  return key;
}"""


def make_page(gr: Any, finder: Finder, model: str) -> Any:
    """gradio.Blocks of the whole page. gr: the module; model: what to call the model."""
    return _Page(gr, finder, model).blocks


class _Page:
    def __init__(self, gr: Any, finder: Finder, model: str) -> None:
        self.gr, self.finder, self.drafts = gr, finder, Drafts()
        segmenter, takes = finder.segmenter, finder.takes
        many = "one to five photographs" if len(takes) == MOST else f"{' or '.join(map(str, takes))} photographs"
        with gr.Blocks(title="fss-svf", analytics_enabled=False) as self.blocks:
            gr.Markdown(
                "# Show it once, find it elsewhere\n"
                f"Paint over the object in {'a photograph' if takes == [1] else many}, then drop another to find it there."
            )
            kept = gr.Textbox(visible=False)
            self.key = gr.State(None)
            self.last = gr.State(None)  # the photograph that was searched, to search it again
            with gr.Row():
                with gr.Column(min_width=340):
                    gr.Markdown("### 1. Examples: paint over the whole object")
                    with gr.Row():
                        self.add = gr.Button("Add a class", size="sm", elem_id="add")
                        sample = 1 in takes and has_sample()
                        self.sample = gr.Button("Try a sample", size="sm", elem_id="sample", visible=sample)
                    with gr.Tabs(selected=1, elem_id="classes") as self.tabs:
                        self.classes = [_Class(gr, tab, takes[-1]) for tab in _TABS]
                with gr.Column(min_width=340):
                    gr.Markdown("### 2. A photograph to find it in")
                    self.drop = gr.File(label="Photograph", file_types=list(IMAGE_ENDINGS), height=130, elem_id="query")
                    self.button = gr.Button("Find it", variant="primary", elem_id="find")
                    self.said = gr.HTML(visible=False, elem_classes="said", elem_id="said")
                    self.shown = gr.Image(
                        label="Found", interactive=False, visible=False, buttons=["fullscreen"], elem_id="found"
                    )
                    self.saved = gr.DownloadButton("Save the mask (PNG)", visible=False, elem_id="save")
            gr.Markdown(f"<small>Model: `{model}` on {segmenter.device}, {segmenter.transform.size} px</small>")
            self.slots = [slot for one in self.classes for slot in one.slots]
            self.layout = [self.tabs, self.add, *[part for one in self.classes for part in one.layout]]
            self.contents = [part for slot in self.slots for part in slot.parts]
            self._connect()
            self.blocks.load(
                self._restore, kept, [self.key, *self.layout, *self.contents], js=_KEY, show_progress="hidden"
            )

    def _connect(self) -> None:
        searched: Mapping[str, Any] = {
            "fn": self._find,
            "inputs": [self.last, self.key, *[part for slot in self.slots for part in (slot.drop, slot.editor)]],
            "outputs": [self.shown, self.saved, self.said],
            "concurrency_id": "model",
        }
        quick: Mapping[str, Any] = {"queue": False, "show_progress": "hidden"}
        # The place to drop is empty again at once, for the next photograph.
        self.drop.upload(lambda photo: (photo, None), self.drop, [self.last, self.drop], queue=False).then(**searched)
        self.button.click(**searched)
        self.sample.click(self._try, self.key, [self.last, *self.layout, *self.contents], queue=False).then(**searched)
        # Hidden only once the tab is shown, which shows all that is in it.
        self.add.click(self._add, self.key, self.layout, **quick).then(self._emptied, self.key, self.contents, **quick)
        for one in self.classes:
            one.name.change(self._named(one), [self.key, one.name], one.tab, **quick)
            one.remove.click(self._removed(one), self.key, [*self.layout, *self.contents], **quick)
            for slot, following in zip(one.slots, [*one.slots[1:], None]):
                after = following.drop if following else self.gr.State()
                shown = [self.key, slot.drop], [slot.said, slot.editor, after]
                # The editor's bin throws the photograph away too; here it means: paint anew.
                for event in (slot.drop.upload, slot.drop.clear, slot.editor.clear):
                    event(self._shown(slot), *shown, queue=False)
                slot.editor.input(self._kept(slot), [self.key, slot.drop, slot.editor], None, **quick)

    # What a page asks

    def _find(self, photo: str | None, key: str | None, *given: Any) -> tuple[Any, ...]:
        gr, draft = self.gr, self.drafts.of(key)
        nothing = gr.update(visible=False)
        if photo is None:
            return nothing, nothing, _said(gr, "No photograph to search yet: drop one above.", wrong=True)
        # What the editors hold now, since the last stroke may not be in the draft yet. One in a tab that is not shown holds
        # what it began with: no stroke says nothing here.
        for slot, path, value in zip(self.slots, given[::2], given[1::2]):
            if value and strokes_of(value["layers"]) is not None:
                self._keep(draft, slot, path, value)
        try:
            classes = {name: draft.of_tab(tab) for tab, name in draft.classes().items()}
            overlaid, mask, text = self.finder.find(Path(photo), classes)
        except FssError as error:
            return nothing, nothing, _said(gr, _by_name(error, photo, *given[::2]), wrong=True)
        return gr.update(value=overlaid, visible=True), gr.update(value=mask, visible=True), _said(gr, text)

    def _restore(self, kept: str) -> tuple[Any, ...]:
        draft = self.drafts.of(kept)
        return kept, *self._arranged(draft, draft.opened[0], [1]), *self._filled(draft, *_TABS)

    def _try(self, key: str | None) -> tuple[Any, ...]:
        """A page of the sample alone."""
        draft = self.drafts.of(key)
        example, strokes, query = copy_sample(self.finder.folder)
        before = draft.opened
        draft.opened, draft.names, draft.examples = [1], {}, {(1, 1): (example, strokes)}
        return str(query), *self._arranged(draft, 1, before), *self._filled(draft, *_TABS)

    def _add(self, key: str | None) -> list[Any]:
        draft = self.drafts.of(key)
        before = draft.opened
        return self._arranged(draft, draft.add(), before)

    def _emptied(self, key: str | None) -> list[Any]:
        draft = self.drafts.of(key)
        return self._filled(draft, *(tab for tab in draft.opened if not draft.of_tab(tab)))

    def _removed(self, one: _Class) -> Any:
        def removed(key: str | None) -> list[Any]:
            draft = self.drafts.of(key)
            before = list(draft.opened)
            draft.remove(one.number)
            return [*self._arranged(draft, draft.opened[-1], before), *self._filled(draft, one.number)]

        return removed

    def _named(self, one: _Class) -> Any:
        def named(key: str | None, name: str) -> Any:
            draft = self.drafts.of(key)
            draft.names[one.number] = name
            return self.gr.update(label=draft.name(one.number)) if one.number in draft.opened else self.gr.skip()

        return named

    def _shown(self, slot: _Slot) -> Any:
        """A photograph in this place opens its editor, and the next place."""

        def shown(key: str | None, photo: str | None) -> tuple[Any, ...]:
            gr, draft = self.gr, self.drafts.of(key)
            draft.examples.pop(slot.place, None)
            if photo is None:
                return _said(gr, ""), slot.hidden(), gr.skip()
            try:
                editor = slot.painted(Path(photo), None)
            except DataError as error:
                return _said(gr, _by_name(error, photo), wrong=True), slot.hidden(), gr.skip()
            draft.examples[slot.place] = Path(photo), None
            return _said(gr, ""), editor, gr.update(visible=True)

        return shown

    def _kept(self, slot: _Slot) -> Any:
        def kept(key: str | None, photo: str | None, value: Any) -> None:
            self._keep(self.drafts.of(key), slot, photo, value)

        return kept

    @staticmethod
    def _keep(draft: Draft, slot: _Slot, photo: str | None, value: Any) -> None:
        if photo and value and slot.place[0] in draft.opened:
            draft.examples[slot.place] = Path(photo), strokes_of(value["layers"])

    # A draft as updates of the page

    def _arranged(self, draft: Draft, selected: int | None, before: Sequence[int]) -> list[Any]:
        """Of `layout`: the tabs that are open, of which one is selected. before: those that were."""
        gr, several = self.gr, len(draft.opened) > 1
        tabs = gr.skip() if selected is None else gr.update(selected=selected)
        updates = [tabs, gr.update(visible=len(draft.opened) < CLASSES)]
        for one in self.classes:
            there = one.number in draft.opened
            name = draft.name(one.number) if there else ""
            # gradio shows all that is in a tab whose `visible` is set, with the editors that are hidden.
            visible = {} if there == (one.number in before) else {"visible": there}
            updates += [
                gr.update(label=name, **visible),
                gr.update(visible=several, value=draft.names.get(one.number, ""), placeholder=name),
                gr.update(visible=several),
            ]
        return updates

    def _filled(self, draft: Draft, *tabs: int) -> list[Any]:
        """Of `contents`: the examples of these tabs; the others are left as they are."""
        updates = []
        for slot in self.slots:
            if slot.place[0] not in tabs:
                updates += [self.gr.skip()] * len(slot.parts)
                continue
            number = slot.place[1]
            path, strokes = draft.examples.get(slot.place, (None, None))
            visible = number == 1 or path is not None or (slot.place[0], number - 1) in draft.examples
            editor = slot.hidden() if path is None else slot.painted(path, strokes)
            updates += [self.gr.update(value=path and str(path), visible=visible), _said(self.gr, ""), editor]
        return updates


class _Class:
    """A tab: the name of a class, which one alone does not need, and places for its examples."""

    def __init__(self, gr: Any, number: int, slots: int) -> None:
        self.number = number
        with gr.Tab(f"class {number}", id=number, visible=number == 1) as self.tab:
            self.name = gr.Textbox(label="Name of the class", visible=False, max_lines=1, elem_id=f"name-{number}")
            self.slots = [_Slot(gr, (number, place)) for place in range(1, slots + 1)]
            self.remove = gr.Button("Remove this class", size="sm", visible=False, elem_id=f"remove-{number}")
        self.layout = [self.tab, self.name, self.remove]


class _Slot:
    """The place of one example: the file that is dropped there, and its copy to paint on. The first is there at once."""

    def __init__(self, gr: Any, place: tuple[int, int]) -> None:
        self.gr, self.place = gr, place
        number = "{}-{}".format(*place)
        self.drop = gr.File(
            label=f"Example {place[1]}",
            file_types=list(IMAGE_ENDINGS),
            height=130,
            visible=place[1] == 1,
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
        self.parts = [self.drop, self.said, self.editor]

    def hidden(self) -> Any:
        # Not visible=False, which takes it out of the page: its script would still be asked what is painted, and break.
        return self.gr.update(value=None, visible="hidden")

    def painted(self, photo: Path, strokes: np.ndarray | None) -> Any:
        """The editor with the photograph's copy, painted where the (h, w) bool strokes are. Raises DataError."""
        copy = paintable(read_photo(photo))
        layers = []
        if strokes is not None:
            layer = np.zeros((*strokes.shape, 4), np.uint8)
            layer[strokes] = (*_COLOUR, round(255 * STRENGTH))
            layers.append(layer)
        return self.gr.update(value={"background": copy, "layers": layers, "composite": copy}, visible=True)


def _said(gr: Any, text: str, wrong: bool = False) -> Any:
    """A line for a gr.HTML; without text it takes no place."""
    return gr.update(value=f"<p{' class=wrong role=alert' * wrong}>{html.escape(text)}</p>", visible=bool(text))


def _by_name(error: FssError, *photos: str | None) -> str:
    """What went wrong, with a photograph called by its name in place of where its upload lies."""
    text = str(error)
    for photo in filter(None, photos):
        text = text.replace(photo, Path(photo).name)
    return text
