"""The page: one file that loads nothing, says what is missing, and whose gallery filters and sorts in a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fss_svf.page.curves import read_curves, read_log, run_folder, thinned
from fss_svf.page.page import page
from fss_svf.page.plots import SERIES, wrapped
from fss_svf.page.sections import gallery
from fss_svf.reporting.gallery import read_gallery, save_gallery
from fss_svf.reporting.pictures import EpisodePicture
from fss_svf.reporting.table import make_tables
from tests.reporting.test_report import result

COLOURS = [light for light, _ in SERIES]
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
            values |= {
                f"spectrum_{key}/{tenth}": step * tenth / 1000 for key in ("mean", "std") for tenth in range(1, 11)
            }
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
    return page(make_tables(results), results).html


def test_everything_is_there_and_nothing_is_loaded(made):
    text = of(made)
    tags = Tags(text).found
    assert [value for _, a in tags for key, value in a.items() if key in ("src", "href") and value[:1] != "#"] == [
        a["src"] for tag, a in tags if tag == "img"
    ]
    assert all(a["src"].startswith("data:image/jpeg;base64,") and a["alt"] for tag, a in tags if tag == "img")
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)|fetch\(", text)
    plots = [a["aria-label"] for tag, a in tags if tag == "svg"]
    assert plots == [
        "Classes of fold 0, 1-shot; without episodes: never",
        "Loss",
        "On the validation episodes",
        "Drift of singular values, mean of a layer's |S - S0| / S0",
        "Drift at the end, by layer",
        "Change S / S0 - 1 of large and small singular values at the end: mean, and standard deviation as a band",
    ]
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
        (".", "neither TensorBoard files nor log.csv"),
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
    assert "No two rows of a table have the same episodes" in text
    assert "No result has an episodes.csv" in text
    assert "No result has numbers by class" in text


def test_a_run_without_tensorboard_is_drawn_from_its_log(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss/main,score,miou,val/loss\n1,0.5,,,\n2,0.25,,,\n2,,0.1,0.1,0.4\n")
    here = result(0.1)
    here["checkpoint"]["path"] = str(tmp_path)
    text = of(here)
    assert [a["aria-label"] for tag, a in Tags(text).found if tag == "svg"] == ["Loss", "On the validation episodes"]
    assert "From log.csv, without TensorBoard files" in text
    assert ">validation<" in text


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
    plots = [a["aria-label"] for tag, a in Tags(text).found if tag == "svg"]
    assert plots.index("Main loss") == plots.index("mIoU on the validation episodes") - 1
    first = re.search(r'aria-label="mIoU on the validation.*?</svg>', text, re.DOTALL).group()
    strokes = re.findall(r'<path d="[^"]+" clip-path[^>]+stroke: (#\w+)', first)
    curves = [colour for colour in strokes if colour in COLOURS]
    # The last two are those of the legend, which has no clip path.
    assert curves == [COLOURS[0], COLOURS[0], COLOURS[1], COLOURS[1]]
    assert [name for name in re.findall(r">([^<]+)</text>", first) if "baseline" in name] == [
        "baseline, frozen",
        "baseline, svf",
    ]
    # The same trainings measured by another protocol are the same curves, and stand there once.
    again = of(*every, *(trained(t, seed, protocol_hash="bbbb") for t in ("frozen", "svf") for seed in (1, 2)))
    assert again.count("<summary>Side by side") == 1
    # One row has nothing to stand beside.
    assert "Side by side" not in of(*every[:4])


def test_trainings_of_one_name_have_titles_that_tell_them_apart(tmp_path):
    def trained(run, **options):
        here = result(0.1, **options)
        here["checkpoint"]["path"] = str(tmp_path / run)
        (tmp_path / run).mkdir(exist_ok=True)
        (tmp_path / run / "log.csv").write_text("step,loss/main\n1,0.5\n2,0.25\n")
        return here

    name = "baseline, svf, coco, resnet50, fold 0, 1-shot, seed 321"
    ranks = [trained("a", **{"tuning.rank": 4}), trained("b", **{"tuning.rank": 8})]
    titles = re.findall(r"<summary>(.*?)</summary>", of(*ranks))
    assert titles[-2:] == [f"{name}, tuning.rank=4", f"{name}, tuning.rank=8"]
    # The same training once more, measured by another protocol: the folders differ.
    again = [trained("a"), {**trained("b"), "protocol_hash": "bbbb"}]
    assert re.findall(r"<summary>(.*?)</summary>", of(*again)) == [f"{name}, a", f"{name}, b"]


def test_a_long_name_is_wrapped_and_its_end_is_read():
    text = "panet, svf, tuning.parametrisation=direct, recipe.max_steps=30"
    lines = wrapped(text, 30).split("\n")
    assert lines == ["panet, svf,", "tuning.parametrisation=direct,", "recipe.max_steps=30"]
    assert wrapped("short", 30) == "short"
    assert wrapped("x" * 999, 30).count("\n") == 3  # a name of any length leaves room for the plot


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


def test_a_log_is_read_by_column_without_what_is_empty(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss/main,val/novel_miou\n1,0.5,\n2,0.25,0.125\n3,0.\n")
    assert read_log(tmp_path) == {"loss/main": [(1, 0.5), (2, 0.25), (3, 0.0)], "val/novel_miou": [(2, 0.125)]}
    assert read_log(tmp_path / "nowhere") == {}


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


def test_the_gallery_names_results_by_what_differs(made, tmp_path):
    def shown(*results):
        return re.findall(r'<option value="([^"]+)"', of(*results).split('id="by-result"')[1].split("</select>")[0])

    def changed(place, shot=1, **options):
        shutil.copytree(tmp_path / "gallery", tmp_path / place / "gallery")
        here = {**result(0.2, shot=shot, **options), "dataset": "toy", "path": str(tmp_path / place / "result.json")}
        here["checkpoint"]["path"] = str(tmp_path / place)
        return here

    ranks = [changed("a", **{"tuning.rank": 4}), changed("b", **{"tuning.rank": 8})]
    assert shown(ranks[0]) == ["baseline, svf"]
    assert shown(*ranks) == ["baseline, svf, tuning.rank=4", "baseline, svf, tuning.rank=8"]
    five = changed("five", shot=5, **{"tuning.rank": 4})
    assert shown(ranks[0], five) == ["baseline, svf, 1-shot", "baseline, svf, 5-shot"]
    # The same measurement once more: the folders differ.
    again = changed("again", **{"tuning.rank": 4})
    assert shown(ranks[0], again) == [f"baseline, svf, {tmp_path / place}" for place in ("a", "again")]


def test_too_many_pictures_are_thinned_and_counted(made, monkeypatch):
    monkeypatch.setattr(gallery, "MOST", 2)
    text = of(made)
    assert text.count("<img ") == 2
    assert "1 more are in the results" in text


def in_a_browser(path, steps, *arguments):
    """What `steps` put into `seen`, run when the page is loaded."""
    script = f"<script>const seen = []; {steps} document.title = JSON.stringify(seen);</script></body>"
    path.write_text(path.read_text().replace("</body>", script))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent / 'profile'}"]
    done = subprocess.run(
        [*command, *arguments, "--dump-dom", path.as_uri() + "?class=cat&order=best"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.S)[1]))


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: the page is not opened")
def test_the_gallery_filters_sorts_pairs_and_enlarges_in_a_browser(made, tmp_path):
    for name in ("other", "control"):
        (tmp_path / name).mkdir()
    other = {**made, "method": "panet", "path": str(tmp_path / "other" / "result.json")}
    save_gallery(tmp_path / "other" / "gallery", [picture(9, "cat", 0.8), picture(4, "cat", 0.7)], seed=321)
    control = {**made, "method": "prototype", "path": str(tmp_path / "control" / "result.json")}
    save_gallery(tmp_path / "control" / "gallery", [picture(4, "cat", 0.05)], seed=321)
    path = tmp_path / "page.html"
    path.write_text(of(made, other, control))
    steps = """
      const find = (id) => document.getElementById(id);
      const shown = () => [...document.querySelectorAll("#gallery figure")].filter((f) => !f.hidden);
      const see = () => seen.push([shown().map((f) => [f.dataset.result.split(",")[0], Number(f.dataset.number)]),
        find("count").textContent, location.search]);
      const choose = (id, value) => {
        find(id)[id === "with-controls" ? "checked" : "value"] = value;
        find(id).dispatchEvent(new Event("change"));
        see();
      };
      see();
      choose("by-class", ""); choose("with-controls", true); choose("with-controls", false);
      choose("by-class", EVIL); choose("by-class", "cat"); choose("by-order", "worst");
      const [, baseline, panet, prototype] = [...find("by-result").options].map((o) => o.value);
      choose("by-result", prototype); choose("by-result", baseline); choose("beside", panet);
      choose("by-order", "difference");
      document.querySelector("#gallery figure:not([hidden]) img").click();
      seen.push([find("enlarged").open, [...find("enlarged").querySelectorAll("figure")].map((f) => f.dataset.result)]);
      find("enlarged").querySelector("img").click();
      seen.push(find("enlarged").open);
    """.replace("EVIL", json.dumps(EVIL).replace("</", "<\\/"))
    *seen, enlarged, still_open = in_a_browser(path, steps)
    figures, counts, addresses = zip(*seen)
    base = [["baseline", 4], ["baseline", 9]]
    assert list(figures) == [
        [["baseline", 4], ["panet", 9], ["panet", 4], ["baseline", 9]],  # of the address: class=cat, order=best
        [["baseline", 4], ["panet", 9], ["panet", 4], ["baseline", 9], ["baseline", 7]],
        [["baseline", 4], ["panet", 9], ["panet", 4], ["baseline", 9], ["baseline", 7], ["prototype", 4]],
        [["baseline", 4], ["panet", 9], ["panet", 4], ["baseline", 9], ["baseline", 7]],
        [["baseline", 7]],
        [["baseline", 4], ["panet", 9], ["panet", 4], ["baseline", 9]],
        [["baseline", 9], ["panet", 4], ["panet", 9], ["baseline", 4]],
        [["prototype", 4]],  # chosen by its name, a control is shown
        base[::-1],
        [["baseline", 9], ["panet", 9], ["baseline", 4], ["panet", 4]],
        [["baseline", 9], ["panet", 9], ["baseline", 4], ["panet", 4]],
    ]
    assert counts[1] == "5 of 6 episodes"
    assert counts[9].startswith("2 episodes that both results show, baseline, svf first")
    assert addresses[0] == "?class=cat&order=best"
    assert addresses[2] == "?order=best&controls=1"
    assert "beside=panet" in addresses[10]
    assert "order=difference" in addresses[10]
    assert enlarged[0] is True
    assert [name.split(",")[0] for name in enlarged[1]] == ["baseline", "panet"]
    assert still_open is False


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: the page is not opened")
def test_tables_sort_and_a_phone_has_names_and_numbers(tmp_path):
    results = [
        result(miou, fold, tuning=name) for name, miou in (("a", 0.2), ("b", 0.1), ("c", 0.3)) for fold in (0, 1)
    ]
    results = [r for r in results if (r["tuning"], r["fold"]) != ("c", 1)]
    path = tmp_path / "page.html"
    path.write_text(of(*results))
    steps = """
      const table = document.querySelector("table.sortable"), heads = [...table.tHead.rows[1].cells];
      const rows = () => [...table.tBodies].map((b) => b.rows[0].cells[0].textContent.slice(-1)).join("");
      const press = (name) => heads.find((h) => h.textContent === name).querySelector("button").click();
      for (const name of ["fold 0", "fold 0", "fold 1", "fold 1", "method, tuning"]) { press(name); seen.push(rows()); }
      const frame = document.querySelector(".scroll"), first = table.tBodies[0].rows[0].cells;
      frame.scrollLeft = 1000;
      const [name, last] = [first[0], table.rows[1].cells[2]].map((c) => c.getBoundingClientRect());
      seen.push(innerWidth, document.documentElement.scrollWidth, name.left >= frame.getBoundingClientRect().left);
      frame.scrollLeft = 0;
      seen.push(first[1].getBoundingClientRect().right < innerWidth);
    """
    seen = in_a_browser(path, steps, "--window-size=500,800")
    # A row without a number is last, whichever way. The published rows stay below theirs.
    assert seen[:5] == ["cab", "bac", "abc", "bac", "abc"]
    width, page_width, name_stays, number_shows = seen[5:]
    assert page_width <= width <= 500
    assert name_stays
    assert number_shows


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: the page is not printed")
def test_the_page_prints_on_a_few_sheets(made, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(of(made, {**made, "shot": 5}, {**made, "tuning": "frozen"}))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--print-to-pdf={tmp_path / 'page.pdf'}", path.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    sheets = re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())
    assert 1 <= len(sheets) <= 8


def test_base_and_novel_classes_over_steps_come_from_the_log(made, tmp_path):
    (tmp_path / "run" / "log.csv").write_text(
        "step,val/base_miou,val/novel_miou\n10,0.5,0.25\n15,,\n20,0.625,0.375\n", encoding="utf-8"
    )
    figures = page(make_tables([made]), [made]).figures
    (steps,) = (svg for name, svg in figures.items() if name.startswith("steps-"))
    strokes = re.findall(
        r'<path d="([^"]+)" clip-path[^>]+style="fill: none; (?:stroke-dasharray[^;]+;[^;]+; )?stroke: (#\w+)', steps
    )
    assert [len(path.split("L")) for path, colour in strokes if colour == COLOURS[0]] == [2, 2]
