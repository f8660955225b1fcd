"""A person's own photographs: masks equal an evaluation's, and every mistake is one line."""

import csv
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fss_svf import Segmenter
from fss_svf.data.augment import binary_mask
from fss_svf.data.images import read_image
from fss_svf.errors import ConfigError, DataError, WeightsError
from fss_svf.evaluation.runs import predicted
from fss_svf.prediction.cutout import cut_out
from fss_svf.prediction.examples import read_examples
from fss_svf.prediction.output import draw_examples
from fss_svf.prediction.overlays import overlay
from fss_svf.prediction.photos import find_photos, read_mask, read_photo
from fss_svf.prediction.support import SupportFeatures
from tests.cli.test_cli import SMALL
from tests.cli.test_cli import one_line as only_line
from tests.conftest import trained
from tests.evaluation.test_engine import SIZE, engine_of, lists_of, task_of
from tests.one_line import data_error
from tests.pixels import allowed


def one_line(err: str) -> str:
    """What went wrong, without the warning that these checkpoints know drawings alone."""
    return only_line("\n".join(line for line in err.splitlines() if "drawings of dataset=toy" not in line))


# A white square in a dark photograph of 60 x 40.
SQUARE = (slice(10, 30), slice(15, 40))


def picture(seed=0):
    image = np.random.default_rng(seed).integers(0, 60, (40, 60, 3), dtype=np.uint8)
    image[SQUARE] += 180
    return image


def square_mask(value=255):
    mask = np.zeros((40, 60), np.uint8)
    mask[SQUARE] = value
    return mask


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def examples(tmp_path):
    """A folder with one example, a.png and a.mask.png."""
    folder = tmp_path / "examples"
    save(folder / "a.png", picture())
    save(folder / "a.mask.png", square_mask())
    return folder


# Equal to an evaluation


def segmenter_of(task):
    return Segmenter(task.model, task.transform, task.protocol, torch.device("cpu"))


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize("name", ["baseline", "pfenet", "bam", "panet", "prototype", "matcher"])
def test_masks_equal_an_evaluations(toy_root, tmp_path, name, resize):
    task = task_of(toy_root, name, shot=3, resize=resize)
    task = replace(task, protocol=replace(task.protocol, label="exact"))
    lists = lists_of(toy_root, runs=1, episodes=6)
    for shot, (episodes,) in lists.items():
        evaluated = predicted(task, engine_of(tmp_path), episodes)
        segmenter = segmenter_of(task_of(toy_root, name, shot=3, resize=resize))
        some = 0
        for spec, said, _ in evaluated:
            images, labels = zip(*(task.split.pair(image) for image in spec.supports))
            code = segmenter.learn(images, [binary_mask(label, spec.class_ids[0]) for label in labels])
            (mask,) = segmenter.segment([read_photo(task.split.image_path(spec.query))], code)
            assert np.array_equal(mask, said.numpy()), (shot, spec)
            some += 0 < mask.mean() < 1
        assert some > 2


def test_a_batch_is_its_images(toy_root):
    task = task_of(toy_root)
    segmenter = segmenter_of(task)
    image, label = task.split.pair(0)
    code = segmenter.learn([image], [(label > 0).astype(np.uint8)])
    images = [task.split.image(n) for n in range(1, 5)]
    images[1] = np.ascontiguousarray(images[1][:50])
    together = segmenter.segment(images, code)
    assert all(np.array_equal(mask, segmenter.segment([one], code)[0]) for one, mask in zip(images, together))
    assert [mask.shape for mask in together] == [one.shape[:2] for one in images]


def test_a_saved_code_is_the_same_and_of_its_model_alone(toy_root, tmp_path):
    segmenter = segmenter_of(task_of(toy_root, "bam"))
    code = segmenter.learn([picture()], [square_mask(1)], ["a.png"])
    code.save(tmp_path / "sub" / "square.pt")
    loaded = SupportFeatures.load(tmp_path / "sub" / "square.pt")
    assert loaded.names == ("a.png",)
    query = [picture(1)]
    assert np.array_equal(segmenter.segment(query, loaded)[0], segmenter.segment(query, code)[0])
    other = segmenter_of(task_of(toy_root, "bam"))
    assert other.identity == segmenter.identity
    task = task_of(toy_root, "bam")
    with torch.no_grad():
        next(task.model.parameters()).view(-1)[0] += 1
    with pytest.raises(WeightsError, match="encoded by another checkpoint"):
        segmenter_of(task).segment(query, loaded)
    with pytest.raises(WeightsError, match="encoded by another checkpoint"):
        segmenter_of(replace(task_of(toy_root, "bam"), transform=replace(task.transform, size=SIZE + 8))).segment(
            query, loaded
        )


def test_mistakes_of_a_caller(toy_root):
    segmenter = segmenter_of(task_of(toy_root, "bam", shot=3))
    with pytest.raises(ConfigError, match=r"2 examples: .*trained at 3 shots.* shots=mean"):
        segmenter.learn([picture()] * 2, [square_mask(1)] * 2)
    segmenter.model.shots = "mean"
    assert len(segmenter.learn([picture()] * 2, [square_mask(1)] * 2).rows) == 2
    with pytest.raises(DataError, match="as many masks as images"):
        segmenter.learn([picture()], [])
    with pytest.raises(DataError, match="must be the same"):
        segmenter.learn([picture()], [square_mask(1)[:-1]])
    tiny = np.zeros((400, 600), np.uint8)
    tiny[0, 1] = 1
    with pytest.raises(DataError, match="example 1: the object has 1 pixels and none at the input size of 65"):
        segmenter.learn([np.zeros((400, 600, 3), np.uint8)], [tiny])


# Photographs and masks


def test_a_photograph_is_turned_by_exif_and_a_mask_is_drawn_on_what_is_shown(tmp_path):
    upright = np.ascontiguousarray(np.rot90(picture()))
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    stored = save(tmp_path / "p.png", picture(), exif=exif)
    assert read_photo(stored).shape == (60, 40, 3)
    assert np.array_equal(read_photo(stored), np.rot90(picture(), -1))
    save(tmp_path / "p.mask.png", np.rot90(square_mask(), -1).copy())
    (example,) = read_examples(tmp_path)
    assert example.image[example.mask == 1].min() >= 180
    save(tmp_path / "p.mask.png", square_mask())
    with data_error("p.mask.png", "60 x 40", "40 x 60"):
        read_examples(tmp_path)
    assert upright.shape == (60, 40, 3)


def test_grey_transparent_and_deep_photographs(tmp_path):
    grey = picture()[..., 0]
    assert np.array_equal(read_photo(save(tmp_path / "g.png", grey)), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(read_photo(save(tmp_path / "d.png", grey.astype(np.uint16) * 257))[..., 0], grey)
    clear = np.dstack([picture(), square_mask()])
    shown = read_photo(save(tmp_path / "t.png", clear))
    assert np.array_equal(shown[SQUARE], picture()[SQUARE])
    assert (shown[0] == 255).all()
    jpeg = save(tmp_path / "j.jpg", picture())
    assert np.array_equal(read_photo(jpeg), read_image(jpeg))


@pytest.mark.parametrize("value", [1, 255, 17])
def test_one_value_of_a_mask_is_the_object(tmp_path, value):
    assert np.array_equal(read_mask(save(tmp_path / "m.png", square_mask(value))), square_mask(1))


def test_masks_of_other_kinds(tmp_path):
    label = square_mask(1)
    label[0] = 255
    assert np.array_equal(read_mask(save(tmp_path / "label.png", label)), label)
    assert np.array_equal(read_mask(save(tmp_path / "rgb.png", np.dstack([square_mask()] * 3))), square_mask(1))
    bits = Image.fromarray(square_mask()).convert("1")
    bits.save(tmp_path / "bits.png")
    assert np.array_equal(read_mask(tmp_path / "bits.png"), square_mask(1))
    for name, colours, numbers in (
        ("swapped", [255, 255, 255, 0, 0, 0], square_mask() == 0),  # a palette whose 0 is white
        ("voc", [0, 0, 0, 128, 0, 0], square_mask() > 0),
    ):
        palette = Image.fromarray(numbers.astype(np.uint8))
        palette.putpalette(colours)
        palette.save(tmp_path / f"{name}.png")
        assert np.array_equal(read_mask(tmp_path / f"{name}.png"), square_mask(1)), name
    soft = square_mask()
    soft[9, 15:40] = 90
    with data_error("soft.png", "3 values (0, 90, 255)", "without soft edges"):
        read_mask(save(tmp_path / "soft.png", soft))
    with data_error("empty.png", "empty"):
        read_mask(save(tmp_path / "empty.png", square_mask(0)))
    with data_error("red.png", "colours"):
        read_mask(save(tmp_path / "red.png", picture()))
    with data_error("clear.png", "transparent"):
        read_mask(save(tmp_path / "clear.png", np.dstack([picture(), square_mask()])))


def test_names_of_any_letters_are_found_whatever_their_spelling(tmp_path):
    save(tmp_path / "cafe\N{COMBINING ACUTE ACCENT} 猫.png", picture())
    marks = {"caf\N{LATIN SMALL LETTER E WITH ACUTE} 猫.png": {"box": [15, 10, 40, 30]}}
    (tmp_path / "annotations.yaml").write_text(yaml.safe_dump(marks, allow_unicode=True), encoding="utf-8")
    (example,) = read_examples(tmp_path)
    assert np.array_equal(example.mask, square_mask(1))


def test_masks_without_a_photograph_are_warned_of(tmp_path, caplog):
    save(tmp_path / "a.png", picture())
    save(tmp_path / "a.mask.png", square_mask(1))
    assert len(read_examples(tmp_path)) == 1
    assert not caplog.messages
    (tmp_path / "masks").mkdir()
    save(tmp_path / "b.mask.png", square_mask(1))
    save(tmp_path / "masks" / "c.png", square_mask(1))
    assert len(read_examples(tmp_path)) == 1
    assert caplog.messages == [f"2 masks have no photograph and are not used, first {tmp_path / 'b.mask.png'}"]


# Boxes and points


def marked(folder, **marks):
    save(folder / "a.png", picture())
    (folder / "annotations.yaml").write_text(yaml.safe_dump({"a.png": marks}))
    return read_examples(folder)[0].mask


def test_boxes_and_points_become_masks(tmp_path):
    assert np.array_equal(marked(tmp_path, box=[15, 10, 40, 30]), square_mask(1))
    assert np.array_equal(marked(tmp_path, box=[[15, 10, 20.5, 30], [20.5, 10, 40, 30]]), square_mask(1))
    for marks in ({}, {"background": [[3, 3], [55, 35]]}, {"box": [10, 5, 45, 35]}):
        mask = marked(tmp_path, points=[[20, 15], [35, 25]], **marks)
        assert (mask != square_mask(1)).mean() < 0.02, marks
    large = np.kron(picture(), np.ones((40, 40, 1), np.uint8))
    assert (cut_out(large, [(1000, 800)]) != np.kron(square_mask(1), np.ones((40, 40)))).mean() < 0.02
    assert cut_out(np.zeros((3, 3, 3), np.uint8), [(1, 1)]).all()


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ({"boxes": [1, 2, 3, 4]}, ("a.png.boxes: no such key", "did you mean 'box'")),
        ({"box": [15, 10, 61, 30]}, ("a.png.box: [15, 10, 61, 30]", "60 x 40")),
        ({"box": [40, 10, 15, 30]}, ("does not lie in the image",)),
        ({"box": [1, 2, 3]}, ("expected 4 values",)),
        ({"points": [[60, 10]]}, ("a.png.points: [60, 10]", "60 x 40")),
        ({"points": [3, 4]}, ("expected a list, got 3",)),
        ({"background": [[3, 4]]}, ("none given, nor a box",)),
        ("box", ("expected a mapping",)),
    ],
)
def test_a_wrong_mark_is_named(tmp_path, marks, words):
    save(tmp_path / "a.png", picture())
    (tmp_path / "annotations.yaml").write_text(yaml.safe_dump({"a.png": marks}))
    with pytest.raises((ConfigError, DataError)) as error:
        read_examples(tmp_path)
    assert "\n" not in str(error.value)
    for word in ("annotations.yaml", *words):
        assert word in str(error.value)


def test_the_masks_of_examples_are_written_to_be_corrected_and_used_again(tmp_path, examples):
    ignored = square_mask(1)
    ignored[0] = 255
    save(examples / "b.png", picture(1))
    palette = Image.fromarray(ignored, "P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(examples / "b.mask.png")
    save(examples / "c.jpg", picture(2))
    (examples / "annotations.yaml").write_text("c.jpg: {box: [15, 10, 40, 30]}")
    given = read_examples(examples)
    assert [example.marked for example in given] == [False, False, True]
    draw_examples(tmp_path / "shown", {"": given})
    for example in given:
        assert np.array_equal(read_mask(tmp_path / "shown" / f"{example.path.stem}.mask.png"), example.mask)
        assert (tmp_path / "shown" / f"{example.path.stem}.overlay.jpg").exists()


def test_a_wrong_folder_of_examples_is_one_line(tmp_path, examples):
    with data_error("no such folder of examples"):
        read_examples(tmp_path / "nowhere")
    with data_error("no image"):
        read_examples(save(tmp_path / "empty" / "a.mask.png", square_mask()).parent)
    save(examples / "masks" / "a.png", square_mask())
    with data_error("a.png", "annotated twice", "a.mask.png and masks/a.png"):
        read_examples(examples)
    (examples / "a.mask.png").unlink()
    assert len(read_examples(examples)) == 1
    save(examples / "b.jpg", picture())
    with data_error("b.jpg: no annotation", "b.mask.png"):
        read_examples(examples)
    (examples / "annotations.yaml").write_text("c.jpg: {box: [1, 2, 3, 4]}")
    with data_error("c.jpg: no such image", "did you mean 'b.jpg'"):
        read_examples(examples)
    (examples / "annotations.yaml").write_text("b.jpg: {box: [1, 2,")
    with data_error("annotations.yaml: cannot be read"):
        read_examples(examples)
    (examples / "annotations.yaml").write_text("b.jpg")
    with data_error("expected lines such as"):
        read_examples(examples)
    save(examples / "a.jpg", picture())
    with data_error("a.png", "same name as that of a.jpg"):
        find_photos(examples, "query")


# The verb


@pytest.fixture(scope="module")
def runs(toy_root, tmp_path_factory):
    """The folder of a training, and another that differs from it in a single weight."""
    folder = tmp_path_factory.mktemp("runs")
    trained(folder / "one", *SMALL, f"dataset.root={toy_root}", "fold=0")
    shutil.copytree(folder / "one", folder / "other")
    path = folder / "other" / "checkpoints" / "last.pt"
    content = torch.load(path)
    next(value for value in content["model"].values() if value.dim() == 4)[0, 0, 0, 0] += 1
    torch.save(content, path)
    return folder / "one", folder / "other"


def test_predict_writes_masks_overlays_and_a_table(fss, runs, examples, tmp_path):
    queries = tmp_path / "queries"
    for number in range(3):
        save(queries / f"bild ü{number}.jpg", picture(number)[: 40 - number])
    (queries / "broken.jpg").write_bytes((queries / "bild ü0.jpg").read_bytes()[:-200])
    (queries / "a link.jpg").symlink_to("nowhere.jpg")
    arguments = ("predict", f"checkpoint={runs[0]}", f"query={queries}", "batch_size=2")
    status, _, err = fss(*arguments, f"support={examples}", "out=first")
    assert status == 1
    assert "2 of 5 images were left out; the first: " in err
    assert "a link to nowhere.jpg" in err
    assert err.count("trained on the drawings of dataset=toy, not on photographs") == 1
    alone = (f"query={queries / 'broken.jpg'}", f"support={examples}", "out=alone")
    status, _, err = fss("predict", f"checkpoint={runs[0]}", *alone)
    assert status == 1
    assert "broken.jpg: " in one_line(err)
    assert not (tmp_path / "alone").exists()
    (queries / "broken.jpg").unlink()
    (queries / "a link.jpg").unlink()
    first, second = tmp_path / "first", tmp_path / "second"
    assert {p.name for p in first.iterdir()} == {
        "config.yaml", "provenance.json", "support.pt", "support", "predictions.csv",
        *(f"bild ü{n}{ending}" for n in range(3) for ending in (".png", ".overlay.jpg")),
    }  # fmt: skip
    rows = list(csv.DictReader((first / "predictions.csv").open(encoding="utf-8")))
    assert [row["file"] for row in rows] == [f"bild ü{n}.jpg" for n in range(3)]
    segmenter = Segmenter.load(runs[0])
    code = segmenter.learn([picture()], [square_mask(1)])
    for number, row in enumerate(rows):
        mask = np.asarray(Image.open(first / f"bild ü{number}.png"))
        alone = 255 * segmenter.segment([read_photo(queries / row["file"])], code)[0]
        assert (mask != alone).sum() <= allowed(mask.size)  # in float32, and there in a batch of two
        assert mask.shape == (40 - number, 60)
        assert float(row["share"]) == pytest.approx((mask == 255).mean(), abs=1e-5)
        assert float(row["seconds"]) > 0
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / ".hydra").exists()

    # Encoded examples are not encoded again, and belong to their checkpoint.
    arguments = ("predict", f"support={first / 'support.pt'}", f"query={queries / 'bild ü1.jpg'}", "out=second")
    status, _, err = fss(*arguments, f"checkpoint={runs[0]}")
    assert status == 0, err
    masks = [np.asarray(Image.open(folder / "bild ü1.png")) for folder in (first, second)]
    assert (masks[0] != masks[1]).sum() <= allowed(masks[0].size)
    status, _, err = fss(*arguments, f"checkpoint={runs[0]}")
    assert status == 1
    assert "second: exists already" in one_line(err)
    assert fss(*arguments, f"checkpoint={runs[0]}", "overwrite=true")[0] == 0
    status, _, err = fss(*arguments, f"checkpoint={runs[1]}", "overwrite=true")
    assert status == 1
    assert "support.pt: encoded by another checkpoint" in one_line(err)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", ["baseline", "bam", "panet"])
def test_another_precision_changes_little_and_codes_go_together(toy_root, name, precision):
    task = task_of(toy_root, name, dtype=torch.float32)
    exact = segmenter_of(task)
    other = Segmenter(task.model, task.transform, task.protocol, torch.device("cpu"), precision)
    other.identity = exact.identity  # of the merged model it would be another
    image, label = task.split.pair(0)
    masks = [(label == label[label > 0][0]).astype(np.uint8)]
    codes = [segmenter.learn([image], masks) for segmenter in (exact, other)]
    (expected,) = exact.segment([task.split.image(1)], codes[0])
    for code in codes:
        # The random head stands on the edge, half of the pixels on either side: chance would be one half.
        assert (other.segment([task.split.image(1)], code)[0] != expected).mean() < 0.2


def test_shots_mean_is_a_choice_of_loading(runs):
    assert Segmenter.load(runs[0], shots="mean").model.shots == "mean"
    assert Segmenter.load(runs[0] / "checkpoints" / "last.pt").model.shots == "method"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"checkpoint": "null"}, ("checkpoint: nothing given",)),
        ({"query": "null"}, ("query: nothing given",)),
        ({"query": "nowhere"}, ("query=", "no such file or folder")),
        ({"query": "text.jpg"}, ("text.jpg", "not an image")),
        ({"support": "text.jpg"}, ("text.jpg", "an image; give the folder that holds it")),
        ({"support": "text.pt"}, ("text.pt", "not a readable checkpoint")),
        ({"support": "nowhere"}, ("support=", "no such folder of examples")),
        ({"checkpoint": "nowhere"}, ("nowhere", "no such checkpoint")),
        ({"out": "text.jpg"}, ("out=", "a file")),
        ({"batch_size": "0"}, ("batch_size",)),
        ({"save_support": "text.jpg"}, ("text.jpg: exists already",)),
        ({"support": "text.pt", "save_support": "s.pt"}, ("save_support", "leave save_support out")),
        ({"out": "examples", "overwrite": "true"}, ("out=", "among the files of support")),
        ({"out": ".", "overwrite": "true"}, ("out=", "among the files of query")),
        ({"out": "/proc/none"}, ("out=/proc/none", "cannot be written")),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(fss, runs, examples, tmp_path, changed, words):
    for name in ("text.jpg", "text.pt"):
        (tmp_path / name).write_text("no image")
    save(tmp_path / "q.png", picture())
    values = {"checkpoint": runs[0], "support": examples, "query": "q.png", "out": "out", **changed}
    status, _, err = fss("predict", *(f"{key}={value}" for key, value in values.items()))
    assert status == 1
    line = one_line(err)
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


# Runs the arguments, and says whether PyTorch was imported.
LAUNCHED = """
import sys
from fss_svf.launch import launch
try:
    launch(sys.argv[1], sys.argv[2:])
finally:
    print("torch" in sys.modules)
"""


def test_a_wrong_file_is_said_before_pytorch_is_imported(examples, tmp_path):
    save(tmp_path / "small" / "a.png", picture())
    save(tmp_path / "small" / "a.mask.png", square_mask(1)[:-1])
    for key, value, words in (
        ("support", "exampels", "no such folder of examples"),
        ("query", "exampels", "no such file or folder"),
        ("support", "small", "a.mask.png: a mask of "),
        ("checkpoint", "latst", "no such checkpoint"),
        ("model", "voc-lite", "unknown (did you mean 'voc-lite0'?)"),
    ):
        values = {"support": examples, "query": examples, "out": "o", key: value}
        values |= {} if key in ("checkpoint", "model") else {"method": "prototype"}
        arguments = [f"{k}={v}" for k, v in values.items()]
        done = subprocess.run(
            [sys.executable, "-c", LAUNCHED, "predict", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert words in one_line(done.stderr)
        assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["plain", "bär (1)", "a=b, [c]", "it's", "#1!", "猫 & 'Hund'"])
def test_a_path_of_any_letters_needs_no_quotes_of_hydras(fss, tmp_path, name):
    status, _, err = fss("predict", f"query={tmp_path / name}", "method=prototype", "support=s", "out=o")
    assert status == 1
    assert one_line(err) == f"fss-svf predict: query={tmp_path / name}: no such file or folder"


def test_an_overlay_shows_the_mask():
    shown = overlay(picture(), square_mask(1))
    inside, outside = shown[20, 20].astype(int), shown[2, 2].astype(int)
    assert inside[0] - inside[2] > 40
    assert outside[0] == outside[1] == outside[2]
    assert (shown[10, 20] == (234, 67, 53)).all()
    assert (overlay(picture(), square_mask(0))[..., 0] == overlay(picture(), square_mask(0))[..., 1]).all()
