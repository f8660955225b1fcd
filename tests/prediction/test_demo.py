"""The page of `demo`: what is painted becomes a mask of the photograph, and a real browser does the whole round."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from fss_svf.data.images import PALETTE
from fss_svf.errors import ConfigError, DataError
from fss_svf.prediction.demo import _gradio, check_address
from fss_svf.prediction.demo_drafts import CLASSES, Draft, Drafts
from fss_svf.prediction.demo_page import make_page
from fss_svf.prediction.examples import UNNAMED
from fss_svf.prediction.finder import Finder, paintable, painted_mask, strokes_of
from tests.cli.test_cli import SMALL, one_line
from tests.evaluation.test_engine import task_of
from tests.prediction.test_predict import SQUARE, picture, save, segmenter_of, square_mask
from tests.reporting.test_page import BROWSER


def layer(where=SQUARE, shape=(40, 60), strength=153):
    """A layer as the editor gives it: RGBA, with one rectangle painted."""
    painted = np.zeros((*shape, 4), np.uint8)
    painted[where] = (234, 67, 53, strength)
    return painted


# What is painted


def test_painted_layers_are_a_mask():
    def mask_of(*layers):
        return painted_mask(strokes_of(layers), (40, 60))

    assert np.array_equal(mask_of(layer()), square_mask(1))
    assert strokes_of([]) is None
    assert strokes_of([layer(strength=0)]) is None
    left, right = layer((slice(10, 30), slice(15, 20))), layer((slice(10, 30), slice(20, 40)))
    assert np.array_equal(mask_of(left, right), square_mask(1))
    # The soft edge of a stroke belongs to it from its middle on.
    soft = layer((slice(9, 31), slice(14, 41)), strength=60)
    soft[SQUARE] = layer()[SQUARE]
    assert np.array_equal(mask_of(soft), square_mask(1))


def test_strokes_on_a_small_copy_are_brought_to_the_photographs_size():
    mask = painted_mask(square_mask(1) > 0, (400, 600))
    assert (mask != np.kron(square_mask(1), np.ones((10, 10)))).mean() < 0.002  # round corners
    assert set(np.unique(mask)) == {0, 1}


def test_what_is_painted_on_has_one_size_and_its_own_shape():
    assert paintable(np.zeros((3000, 4000, 3), np.uint8)).shape == (768, 1024, 3)
    assert paintable(np.zeros((1, 5000, 3), np.uint8)).shape == (1, 1024, 3)
    assert paintable(picture()).shape == (683, 1024, 3)


# What the page asks


def test_examples_are_encoded_once_and_the_mask_is_that_of_predict(toy_root, tmp_path, monkeypatch):
    segmenter = segmenter_of(task_of(toy_root))
    finder = Finder(segmenter, tmp_path)
    assert finder.takes == [1, 2, 3, 4, 5]
    learnt, learn = [], segmenter.learn
    monkeypatch.setattr(segmenter, "learn", lambda *given: learnt.append(given) or learn(*given))
    paths = [save(tmp_path / f"{n} ü.png", picture(n)) for n in range(4)]
    strokes = square_mask(1) > 0
    examples = [(paths[0], strokes), (paths[1], None), (paths[2], None)]
    (expected,) = segmenter.segment([picture(3)], learn([picture(0)], [square_mask(1)]))
    for number in range(3):
        overlaid, mask, text = finder.find(paths[3], {UNNAMED: examples})
        assert np.array_equal(np.asarray(Image.open(mask)), 255 * expected)
        assert Image.open(overlaid).size == (60, 40)
        assert mask.name == "3 ü.mask.png"
        assert f"3 ü.png: {100 * expected.mean():.1f}% of 60 x 40 pixels, by 1 example." in text
        assert ("to encode the examples" in text) == (number == 0)
    assert len(learnt) == 1
    examples[1] = (paths[1], strokes)
    assert "by 2 examples" in finder.find(paths[3], {UNNAMED: examples})[2]
    assert len(learnt) == 2
    for number in range(20):  # old ones are let go
        finder.find(paths[3], {UNNAMED: [(paths[0], np.roll(strokes, number))]})
    assert len(finder._learnt) == 16


def test_several_classes_are_those_of_predict(toy_root, tmp_path):
    segmenter = segmenter_of(task_of(toy_root))
    finder = Finder(segmenter, tmp_path)
    paths = [save(tmp_path / f"{n}.png", picture(n)) for n in range(3)]
    square, other = square_mask(1), 1 - square_mask(1)
    learnt = [segmenter.learn([picture(0)], [square]), segmenter.learn([picture(1)], [other])]
    (expected,) = segmenter.segment([picture(2)], learnt)
    classes = {"square": [(paths[0], square > 0)], "rest": [(paths[1], other > 0), (paths[2], None)]}
    overlaid, mask, text = finder.find(paths[2], classes)
    label = Image.open(mask)
    assert np.array_equal(np.asarray(label), expected)
    assert label.getpalette()[:9] == PALETTE[:3].ravel().tolist()
    assert Image.open(overlaid).size[1] > 40  # the legend
    for number, name in enumerate(classes, 1):
        share = (expected == number).mean()
        assert (f"{name} {100 * share:.1f}%" in text) == (share > 0)
    assert "by 2 examples" in text


def test_the_numbers_of_examples_are_those_of_the_model(toy_root, tmp_path):
    finder = Finder(segmenter_of(task_of(toy_root, "bam", shot=3)), tmp_path)
    assert finder.takes == [1, 3]
    path = save(tmp_path / "a.png", picture())
    with pytest.raises(ConfigError, match=r"2 examples: .*trained at 3 shots"):
        finder.find(path, {UNNAMED: [(path, square_mask(1) > 0)] * 2})


def test_mistakes_on_the_page(toy_root, tmp_path):
    finder = Finder(segmenter_of(task_of(toy_root)), tmp_path)
    path = save(tmp_path / "a.png", picture())
    strokes = square_mask(1) > 0
    for examples in ([], [(path, None)]):
        with pytest.raises(DataError, match="Nothing is painted yet"):
            finder.find(path, {UNNAMED: examples})
    with pytest.raises(DataError, match="dog: no example in its tab yet"):
        finder.find(path, {"cat": [(path, strokes)], "dog": []})
    with pytest.raises(DataError, match="dog: nothing is painted in its tab yet"):
        finder.find(path, {"cat": [(path, strokes)], "dog": [(path, None)]})
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg"):
        finder.find(tmp_path / "text.jpg", {UNNAMED: [(path, strokes)]})


def test_tabs_of_classes():
    draft = Draft()
    assert draft.classes() == {1: UNNAMED}
    assert [draft.add() for _ in range(CLASSES)] == [2, 3, 4, 5, None]
    draft.names |= {2: " Cat ", 3: "dog"}
    draft.examples = {(2, 1): ("a", None), (3, 2): ("c", None), (3, 1): ("b", None)}
    for _ in range(2):  # clicked twice
        draft.remove(2)
    assert draft.classes() == {1: "class 1", 3: "dog", 4: "class 3", 5: "class 4"}
    assert draft.of_tab(3) == [("b", None), ("c", None)]
    assert draft.add() == 2
    assert draft.name(2) == "class 2"
    assert draft.of_tab(2) == []
    alone = Draft()
    alone.remove(1)
    assert alone.opened == [1]
    draft.names[5] = "DOG"
    with pytest.raises(DataError, match="DOG: two tabs have this name"):
        draft.classes()


def test_drafts_are_found_by_their_key_and_old_ones_are_let_go():
    drafts = Drafts()
    first = drafts.of("first")
    for number in range(80):
        drafts.of(str(number))
        assert drafts.of("first") is first
    assert len(drafts) == 50
    assert drafts.of(None) is not drafts.of(None)


# The verb


@pytest.fixture
def environment():
    """What the demo says to gradio by environment variables is forgotten after the test."""
    with mock.patch.dict(os.environ):
        yield


def test_an_address_that_cannot_be_served_is_one_line(fss):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = fss("demo", "method=prototype", f"port={port}")
    assert status == 1
    assert f"port={port}: taken" in one_line(err)
    with pytest.raises(ConfigError, match=r"host=no\.such\.host\.invalid: no address of this machine"):
        check_address("no.such.host.invalid", 7860)
    status, _, err = fss("demo", "method=prototype", "port=0")
    assert status == 1
    assert "port: expected a number from 1 to 65535" in one_line(err)
    assert "checkpoint: nothing given" in one_line(fss("demo")[2])


def test_without_gradio_the_way_to_it_is_said(fss, monkeypatch, environment):
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, _, err = fss("demo", "method=prototype", f"port={free_port()}")
    assert status == 1
    assert one_line(err).endswith("pip install 'fss-svf[demo]'")


# In a browser


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def opened(port):
    """The page in a headless browser; fails where it asked for anything from outside, or where its script broke."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: the page is not opened")
    if BROWSER is None:
        pytest.skip("no chromium here: the page is not opened")
    outside, broken = [], []

    def let_through(route):
        if route.request.url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")):
            return route.continue_()
        outside.append(route.request.url)
        return route.abort()

    with sync_api.sync_playwright() as playwright:
        # The editor draws by WebGL, which is computed where there is no graphics card.
        arguments = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.route("**/*", let_through)
        page.on("pageerror", lambda error: broken.append(str(error)))
        # gradio's editor asks itself what is painted when it has just gone with its tab; the server has the strokes.
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#query input[type=file]", state="attached")
        yield page
        browser.close()
    assert not outside
    assert not [error for error in broken if "get_blobs" not in error]


def give(page, place, path):
    page.set_input_files(f"#{place} input[type=file]", path)


def said(page, *words):
    """Wait until the page says all of it."""
    line = ""
    for _ in range(60):
        line = page.inner_text("#said") if page.query_selector("#said") else ""
        if all(word in line for word in words):
            return
        page.wait_for_timeout(1000)
    raise AssertionError(f"{words} not in {line!r}")


def paint(page, place, size, corner, end):
    """Paint lines back and forth from one corner to the other, in fractions of the copy of (width, height)."""
    canvas = page.wait_for_selector(f"#paint-{place} canvas")
    shown = None
    while shown in (None, "100%") or shown != page.inner_text(f"#paint-{place} .zoom-number"):
        shown = page.inner_text(f"#paint-{place} .zoom-number")
        page.wait_for_timeout(500)  # the photograph is laid into the canvas, and made to fit
    zoom = float(shown.rstrip("%")) / 100
    width, height = size[0] * zoom, size[1] * zoom
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    left, top = box["x"] + (box["width"] - width) / 2, box["y"] + (box["height"] - height) / 2
    rows = np.linspace(corner[1], end[1], 4)
    page.mouse.move(left + corner[0] * width, top + corner[1] * height)
    page.mouse.down()
    for count, row in enumerate(rows):
        sides = (corner[0], end[0]) if count % 2 == 0 else (end[0], corner[0])
        for side in sides:
            page.mouse.move(left + side * width, top + row * height, steps=2)
    page.mouse.up()


@pytest.mark.long
def test_the_whole_round_in_a_browser(toy_root, tmp_path):
    pytest.importorskip("gradio")
    run, port = tmp_path / "run", free_port()
    training = [*SMALL, f"dataset.root={toy_root}", "fold=0", f"hydra.run.dir={run}"]
    subprocess.run([sys.executable, "-m", "fss_svf", "train", *training], check=True)
    for n, ending in enumerate(("png", "jpg", "jpg")):
        save(tmp_path / f"photo {n}.{ending}", np.kron(picture(n), np.ones((5, 5, 1), np.uint8)))
    (tmp_path / "text.jpg").write_text("no image")
    kept = tmp_path / "temporary"
    kept.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "fss_svf", "demo", f"checkpoint={run}", f"port={port}", "device=cpu"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(kept)},
    )  # fmt: skip
    try:
        while "the page is at" not in (line := server.stderr.readline()):
            assert server.poll() is None, line
        with opened(port) as page:
            page.click("#find")
            said(page, "No photograph to search yet")
            give(page, "query", tmp_path / "photo 1.jpg")
            said(page, "Nothing is painted yet")
            give(page, "example-1-1", tmp_path / "text.jpg")
            page.wait_for_selector("text=text.jpg: cannot be read")
            page.click("#example-1-1 [aria-label=Clear]")
            page.wait_for_selector("text=text.jpg: cannot be read", state="detached")
            give(page, "example-1-1", tmp_path / "photo 0.png")
            paint(page, "1-1", (1024, 683), (0.3, 0.3), (0.6, 0.7))
            page.wait_for_selector("#example-1-2 input[type=file]", state="attached")
            page.click("#paint-1-1 [aria-label='Clear canvas']")
            page.click("#find")
            said(page, "Nothing is painted yet")
            paint(page, "1-1", (1024, 683), (0.3, 0.3), (0.6, 0.7))
            page.click("#find")
            said(page, "photo 1.jpg", "300 x 200 pixels, by 1 example", "to encode")
            # The next one needs no button, and no encoding.
            give(page, "query", tmp_path / "photo 2.jpg")
            said(page, "photo 2.jpg", "by 1 example")
            assert "to encode" not in page.inner_text("#said")
            page.wait_for_selector("#found img")
            with page.expect_download() as download:
                page.click("#save")
            assert download.value.suggested_filename == "photo 2.mask.png"
            mask = np.asarray(Image.open(download.value.path()))
            assert mask.shape == (200, 300)
            assert set(np.unique(mask)) <= {0, 255}
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    assert not list(kept.glob("fss-svf-demo-*"))


class Told:
    """In place of a model: keeps what it was taught, and finds the bright half of a photograph."""

    device, transform = torch.device("cpu"), SimpleNamespace(size=65)

    def __init__(self):
        self.taught = []

    def check_shot(self, shot):
        pass

    def learn(self, images, masks, names):
        self.taught = list(zip(images, masks))

    def segment(self, images, classes):
        """The bright half is of the first class, and the rest of the second, if there is one."""
        return [np.where(image[..., 0] > 128, 1, 2 * (len(classes) > 1)).astype(np.uint8) for image in images]


@contextmanager
def served(model, folder):
    """The page of a model in a browser."""
    pytest.importorskip("gradio")
    port = free_port()
    with _gradio(str(folder), "127.0.0.1") as gradio:
        page = make_page(gradio, Finder(model, folder), "none")
        page.launch(server_port=port, prevent_thread_lock=True, quiet=True, ssr_mode=False)
        try:
            with opened(port) as browser:
                yield browser
        finally:
            page.close(verbose=False)


@pytest.mark.slow
def test_large_turned_photographs_are_painted_where_they_are_shown(tmp_path, environment):
    """12 megapixels, stored lying and turned by EXIF; and a second example, small, of another shape."""
    lying = np.zeros((3000, 4000, 3), np.uint8)
    lying[:, :1000] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise: 3000 x 4000, bright above
    large = save(tmp_path / "large.jpg", lying, exif=exif)
    small = save(tmp_path / "small.png", picture())
    model = Told()
    with served(model, tmp_path) as page:
        give(page, "example-1-1", large)
        paint(page, "1-1", (768, 1024), (0.4, 0.2), (0.7, 0.5))
        give(page, "example-1-2", small)
        paint(page, "1-2", (1024, 683), (0.25, 0.25), (0.7, 0.75))
        give(page, "query", large)
        said(page, "large.jpg: 25.0% of 3000 x 4000 pixels, by 2 examples")
        with page.expect_download() as download:
            page.click("#save")
        found = np.asarray(Image.open(download.value.path()))
    assert found.shape == (4000, 3000)
    assert (found[:990] == 255).all()
    assert not found[1010:].any()
    for (image, mask), shape, box in zip(
        model.taught, [(4000, 3000), (40, 60)], [(0.4, 0.2, 0.7, 0.5), (0.25, 0.25, 0.7, 0.75)]
    ):
        assert mask.shape == image.shape[:2] == shape
        rows, columns = np.nonzero(mask)
        got = columns.min() / shape[1], rows.min() / shape[0], columns.max() / shape[1], rows.max() / shape[0]
        # A brush is round about the way of the mouse.
        assert np.allclose(got, box, atol=0.12), got
        assert abs((got[0] + got[2]) - (box[0] + box[2])) < 0.05, got
        assert abs((got[1] + got[3]) - (box[1] + box[3])) < 0.05, got


@pytest.mark.long
def test_classes_are_tabs_and_a_reload_keeps_them(tmp_path, environment):
    photo = save(tmp_path / "photo.png", picture())
    with served(Told(), tmp_path) as page:
        give(page, "example-1-1", photo)
        paint(page, "1-1", (1024, 683), (0.25, 0.25), (0.7, 0.75))
        page.click("#add")
        page.fill("#name-2 input, #name-2 textarea", "Möwe")
        page.wait_for_selector("#classes button[role=tab]:has-text('Möwe')")
        give(page, "query", photo)
        said(page, "Möwe: no example in its tab yet")
        give(page, "example-2-1", photo)
        page.wait_for_selector("#paint-2-1 canvas")
        page.click("#find")
        said(page, "Möwe: nothing is painted in its tab yet")
        paint(page, "2-1", (1024, 683), (0.3, 0.1), (0.5, 0.9))
        page.click("#find")
        said(page, "photo.png: class 1", "Möwe", "by 2 examples")
        page.reload()
        page.wait_for_selector("#classes button[role=tab]:has-text('Möwe')")
        page.wait_for_selector("#paint-1-1 canvas")
        page.wait_for_timeout(2000)
        give(page, "query", photo)
        said(page, "photo.png: class 1", "Möwe", "by 2 examples")
        assert "to encode" not in page.inner_text("#said")  # painted as before, to the pixel
        with page.expect_download() as download:
            page.click("#save")
        label = Image.open(download.value.path())
        assert label.mode == "P"
        assert np.array_equal(np.asarray(label), np.where(picture()[..., 0] > 128, 1, 2))
        page.click("#classes button[role=tab]:has-text('class 1')")
        page.fill("#name-1 input, #name-1 textarea", "möwe")
        page.click("#find")
        said(page, "two tabs have this name")
        page.click("#remove-1")
        page.wait_for_selector("#remove-2", state="hidden")
        page.click("#find")
        said(page, "photo.png: 20.8% of 60 x 40 pixels, by 1 example")


@pytest.mark.long
def test_the_sample_is_tried_in_a_click(tmp_path, environment):
    model = Told()
    with served(model, tmp_path) as page:
        editors = page.locator("[id^=paint-]:visible")
        page.wait_for_selector("#paint-1-1", state="attached")
        page.click("#sample")
        said(page, "cheetah.jpg", "by 1 example")
        page.wait_for_timeout(2000)
        assert editors.count() == 1
        ((_, mask),) = model.taught
        assert 0.4 < mask.mean() < 0.7
        for _ in range(2):  # a second class opens empty, the second time too
            page.click("#add")
            page.wait_for_selector("#example-2-1")
            page.wait_for_timeout(2000)
            assert editors.count() == 0
            page.click("#remove-2")
            page.wait_for_selector("#remove-2", state="hidden")
            page.wait_for_timeout(2000)
            assert editors.count() == 1
