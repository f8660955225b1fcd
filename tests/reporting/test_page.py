"""The page: one file that loads nothing, says what is missing, and whose gallery filters and sorts in a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from fss_svf.reporting.charts import ticks
from fss_svf.reporting.curves import read_curves, run_folder, thinned
from fss_svf.reporting.page import page
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fss_svf.reporting import page_gallery
from fss_svf.reporting.gallery import read_gallery, save_gallery
from fss_svf.reporting.pictures import EpisodePicture
from fss_svf.reporting.table import make_tables
from tests.reporting.test_report import result

EVIL = "</script><img src=x onerror='alert(1)'>\"&"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Tags(HTMLParser):
    """Every tag with its attributes; fails where an element is not closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def picture(number, name, iou, ways=1):
    random = np.random.default_rng(number)
    image, mask = random.integers(255, size=(90, 120, 3), dtype=np.uint8), np.ones((90, 120), np.uint8)
    return EpisodePicture(number, (name,) * ways, iou, [(image, mask)] * ways, image, mask, mask)


@pytest.fixture
def made(tmp_path):
    """A result with everything: classes, a run folder with curves, and a gallery."""
    run = tmp_path / "run"
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for step in range(1, 11):
            values = {"loss/main": 1 / step, "miou": step / 20, "fb_iou": 0.5, "drift/layer2.0.conv1": step / 100}
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        writer.add_scalar("loss/aux", float("nan"), 1)
    (run / "checkpoints").mkdir()
    here = {**result(0.25), "dataset": "toy", "per_class": {"cat": 0.4, EVIL: 0.1, "never": None}}
    here["interval"] = {"miou": [0.2, 0.3], "fb_iou": [0.4, 0.6]}
    here["checkpoint"] = {**here["checkpoint"], "path": str(run / "checkpoints" / "best.pt")}
    here["path"] = str(tmp_path / "result.json")
    pictures = [(4, "cat", 0.9), (7, EVIL, 0.1), (9, "cat", 0.3)]
    save_gallery(tmp_path / "gallery", [picture(*p) for p in pictures], seed=321)
    return here


def of(*results):
    return page(make_tables(results), results)


def test_everything_is_there_and_nothing_is_loaded(made):
    text = of(made)
    tags = Tags(text).found
    assert [value for _, a in tags for key, value in a.items() if key in ("src", "href") and value[:1] != "#"] == [
        a["src"] for tag, a in tags if tag == "img"
    ]
    assert all(a["src"].startswith("data:image/jpeg;base64,") and a["alt"] for tag, a in tags if tag == "img")
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(|fetch\(", text)
    charts = [a["aria-label"] for tag, a in tags if tag == "svg"]
    assert [label.split(":")[0] for label in charts] == [
        "Loss",
        "In training, on the validation episodes (%)",
        "Drift of the singular values, mean of a layer's |S - S0| / S0 (%)",
    ]
    assert "main 0.1" in charts[0]
    assert "mIoU 50" in charts[1]
    assert "<small>20.00 to 30.00</small>" in text
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_names_are_text(made):
    text = of({**made, "tuning": EVIL, "method": EVIL})
    tags = Tags(text)
    assert sum(tag == "script" for tag, _ in tags.found) == 1
    assert not any("onerror" in attributes for _, attributes in tags.found)
    assert html.escape(EVIL) in text
    assert EVIL not in text


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("nowhere/checkpoints/last.pt", "nowhere: no such folder"),
        (".", "no TensorBoard file"),
    ],
)
def test_missing_curves_and_pictures_are_listed(tmp_path, monkeypatch, checkpoint, message):
    monkeypatch.chdir(tmp_path)
    bare = result(0.1)
    bare["checkpoint"]["path"] = checkpoint
    text = of(bare)
    Tags(text)
    assert message in text
    assert "No pictures" in text
    assert "No result has numbers by class" in text


def test_rows_stand_side_by_side_with_a_colour_each_and_a_line_a_seed(tmp_path):
    def trained(tuning, seed, shot=1, fold=0, **changes):
        run = tmp_path / f"{tuning}{seed}{fold}"
        if not run.exists():
            with SummaryWriter(str(run / "tensorboard")) as writer:
                for step in (1, 2, 3):
                    writer.add_scalar("loss/main", 1 / step, step)
                    writer.add_scalar("miou", 0.1 * step, step)
        here = {**result(0.1, fold, shot, tuning, seed), **changes}
        here["checkpoint"]["path"] = str(run)
        return here

    every = [trained(t, seed, shot) for t in ("frozen", "svf") for seed in (1, 2) for shot in (1, 5)]
    alone = trained("frozen", 1, fold=1)
    untrained = {**result(0.1, tuning="none"), "checkpoint": None}
    text = of(*every, alone, untrained)
    titles = re.findall(r"<summary>(.*?)</summary>", text)
    assert [t for t in titles if t.startswith("Side by side")] == ["Side by side: coco, resnet50, fold 0"]
    assert titles.index("Side by side: coco, resnet50, fold 0") < titles.index(
        "baseline, frozen, coco, resnet50, fold 0, 1-shot, seed 1"
    )
    loss, score = [a["aria-label"] for tag, a in Tags(text).found if tag == "svg"][:2]
    assert loss.startswith("Main loss: baseline, frozen, ")
    assert score.startswith("mIoU in training, on the validation episodes (%): baseline, frozen, ")
    assert loss.count("(2 seeds)") == score.count("(2 seeds)") == 2
    first = re.search(r'aria-label="mIoU in training.*?</svg>', text, re.DOTALL).group()
    assert re.findall(r'polyline class="(c\d)', first) == ["c0", "c0", "c1", "c1"]
    # The same trainings measured by another protocol are the same curves, and stand there once.
    again = of(*every, *(trained(t, seed, protocol_hash="bbbb") for t in ("frozen", "svf") for seed in (1, 2)))
    assert again.count("<summary>Side by side") == 1
    # One row has nothing to stand beside.
    assert "Side by side" not in of(*every[:4])


def test_a_control_has_no_training():
    text = of({**result(0.1), "checkpoint": None})
    assert "No result comes from a training" in text


def test_curves_of_a_run_folder_and_of_its_checkpoint_are_the_same(made, tmp_path):
    assert run_folder(made["checkpoint"]["path"]) == run_folder(str(tmp_path / "run")) == tmp_path / "run"
    curves = read_curves(tmp_path / "run")
    assert [step for step, _ in curves["miou"]] == list(range(1, 11))
    assert curves["loss/aux"] == []  # not a number


def test_thinned_curves_keep_their_course():
    curve = [(step, float(step)) for step in range(1, 10_001)]
    thin = thinned(curve, 100)
    assert len(thin) == 100
    assert thin[-1][0] == 10_000
    assert thin[0] == (100, 50.5)
    assert thinned(curve[:50], 100) == curve[:50]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0.6931, 0.6932), (5, 5), (0, 0), (1, 123456)])
def test_ticks_hold_the_values(low, high):
    found = ticks(low, high, 5)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8


def test_the_gallery_is_small_and_indexed(made, tmp_path):
    entries = read_gallery(tmp_path / "gallery")
    first = entries[0]
    assert (first.number, first.classes, first.iou, first.seed) == (4, ("cat",), 0.9, 321)
    with Image.open(tmp_path / "gallery" / entries[0].file) as strip:
        assert strip.size == (4 * 166 - 6, 120)
    save_gallery(tmp_path / "two", [picture(0, "cat", 0.5, ways=2)], 0)
    with Image.open(tmp_path / "two" / "000000.jpg") as strip:
        assert strip.width == 5 * 166 - 6


def test_an_index_that_leads_elsewhere_or_is_broken_gives_no_picture(made, tmp_path, caplog):
    path = tmp_path / "gallery" / "index.json"
    index = json.loads(path.read_text())
    index["episodes"][0]["file"] = "../secret.jpg"
    (tmp_path / "gallery" / index["episodes"][1]["file"]).unlink()
    path.write_text(json.dumps(index))
    assert [e.number for e in read_gallery(tmp_path / "gallery")] == [9]
    path.write_text("[")
    assert read_gallery(tmp_path / "gallery") == []
    assert "not a readable index" in caplog.text


def test_too_many_pictures_are_thinned_and_counted(made, monkeypatch):
    monkeypatch.setattr(page_gallery, "MOST", 2)
    text = of(made)
    assert text.count("<img ") == 2
    assert "1 more are in the results" in text


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: filter and sort of the gallery are not tried")
def test_the_gallery_filters_and_sorts_in_a_browser(made, tmp_path):
    steps = """<script>
      const seen = [], choose = (id, value) => {
        const control = document.getElementById(id);
        control.value = value;
        control.dispatchEvent(new Event("change"));
        const figures = [...document.querySelectorAll("#gallery figure")].filter((f) => !f.hidden);
        seen.push([figures.map((f) => Number(f.dataset.number)), document.getElementById("count").textContent]);
      };
      choose("by-order", "worst"); choose("by-order", "best"); choose("by-order", "number");
      choose("by-class", "cat"); choose("by-class", EVIL); choose("by-result", "0"); choose("by-class", "");
      document.title = JSON.stringify(seen);
    </script></body>""".replace("EVIL", json.dumps(EVIL).replace("</", "<\\/"))
    path = tmp_path / "page.html"
    path.write_text(of(made).replace("</body>", steps))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.S)[1]))
    every = "3 of 3 episodes"
    assert seen == [
        [[7, 9, 4], every],
        [[4, 9, 7], every],
        [[4, 7, 9], every],
        [[4, 9], "2 of 3 episodes"],
        [[7], "1 of 3 episodes"],
        [[7], "1 of 3 episodes"],
        [[4, 7, 9], every],
    ]
