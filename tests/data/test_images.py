"""Every kind of image file is read as a viewer shows it, or refused in one line."""

import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from fss_svf.data import decoding
from fss_svf.data.file_names import image_files
from fss_svf.data.images import image_size, read_image, read_image_of_label, read_label
from fss_svf.prediction.photos import find_masks, find_photos, read_mask, read_photo
from tests.one_line import data_error

GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def exif(orientation):
    entries = Image.Exif()
    entries[0x0112] = orientation
    return entries


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("deep", [GREY.astype(np.uint16) * 257, GREY.astype(np.uint16) << 8])
def test_grey_in_16_bits(tmp_path, ending, deep):
    path = save(tmp_path / f"a.{ending}", deep)
    assert np.array_equal(read_image(path), np.repeat(GREY[..., None], 3, 2))


def test_grey_in_16_bits_of_the_other_byte_order(tmp_path):
    big = Image.frombytes("I;16B", (30, 20), (GREY.astype(">u2") * 257).tobytes())
    assert np.array_equal(read_image(save(tmp_path / "a.tif", big))[..., 0], GREY)


def test_grey_in_16_bits_with_a_transparent_value(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    # The chunk by hand: in which mode Pillow writes one in 16 bits depends on its release.
    path = save(tmp_path / "a.png", deep)
    chunk = b"tRNS" + int(deep[0, 0]).to_bytes(2, "big")
    before, after = path.read_bytes().split(b"IDAT", 1)
    length = before[-4:]
    whole = (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(before[:-4] + whole + length + b"IDAT" + after)
    shown = read_image(path)[..., 0]
    assert np.array_equal(shown, np.where(GREY[0, 0] == GREY, 255, GREY))


def test_floats_from_black_to_white(tmp_path):
    path = save(tmp_path / "a.tif", (GREY / 255).astype(np.float32))
    assert np.array_equal(read_image(path), np.repeat(GREY[..., None], 3, 2))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (GREY.astype(np.float32), ("float values from 0 to 255", "0 (black) to 1 (white)")),
        (np.full((4, 4), -0.5, np.float32), ("from -0.5 to -0.5",)),
        (np.full((4, 4), np.nan, np.float32), ("nan",)),
        (GREY.astype(np.int32), ("32 bits",)),
        (GREY.astype(np.uint16), ("16 bits without a value above 255", "8 bits")),
        (GREY.astype(np.uint16) * 16, ("16 bits without a value above 4,080",)),
    ],
)
def test_values_that_could_mean_two_pictures_are_refused(tmp_path, values, words):
    path = save(tmp_path / "a.tif", values)
    for read in (read_image, read_photo):
        with data_error(path, *words):
            read(path)


def test_kinds_of_8_bits_and_fewer(tmp_path):
    def read(image, ending="png", **options):
        return read_image(save(tmp_path / f"a.{ending}", image, **options))

    black_white = Image.fromarray(GREY > 128)
    assert np.array_equal(read(black_white)[..., 0], (GREY > 128) * 255)
    assert np.array_equal(read(black_white, "tif")[..., 0], (GREY > 128) * 255)
    palette = Image.fromarray(GREY // 16)
    palette.putpalette(COLOURS.reshape(-1)[:768].tobytes())
    assert np.array_equal(read(palette), COLOURS.reshape(-1)[:768].reshape(256, 3)[GREY // 16])
    clear = read(palette, transparency=3)
    assert (clear[GREY // 16 == 3] == 255).all()
    assert np.array_equal(clear[GREY // 16 != 3], read(palette)[GREY // 16 != 3])
    half = read(np.dstack([COLOURS, np.full((20, 30), 51, np.uint8)]))
    assert np.abs(half - (0.2 * COLOURS + 0.8 * 255)).max() <= 1
    assert (read(np.dstack([GREY, 0 * GREY])) == 255).all()
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    for ending in ("jpg", "tif"):
        assert np.abs(read(cmyk, ending, quality=100).astype(int) - COLOURS).mean() < 30
    with data_error("a.tif", "LAB", "RGB"):
        read(Image.new("LAB", (4, 4)), "tif")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_turns_it(tmp_path, ending, orientation):
    path = save(tmp_path / f"a.{ending}", COLOURS, exif=exif(orientation))
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_photo(path), shown)
    assert np.array_equal(read_image_of_label(path, (30, 20)), shown)
    stored = read_image(path)
    if ending == "tif":  # turned by Pillow
        assert np.array_equal(stored, shown)
        return
    assert stored.shape[:2] == image_size(path) == (20, 30)
    # Of 20 x 30 the frames differ in their size only where the image is turned by 90 degrees.
    assert np.array_equal(read_image_of_label(path, (20, 30)), stored if orientation >= 5 else shown)


def test_exif_that_is_damaged_does_no_harm(tmp_path):
    plain = save(tmp_path / "plain.jpg", COLOURS).read_bytes()
    entries = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHII", 0x9204, 10, 1, 38)
    turned = b"II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0) + struct.pack("<ii", -1, 0)
    upright = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x112, 3, 1, 9, 0)
    path, shown = tmp_path / "a.jpg", {}
    contents = {"turned": turned, "nine": upright, "cut": turned[:15], "noise": b"nothing of the kind", "empty": b""}
    for name, content in contents.items():
        content = b"Exif\0\0" + content
        path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + plain[2:])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shown[name] = read_photo(path)
    stored = read_image(tmp_path / "plain.jpg")
    assert np.array_equal(shown.pop("turned"), np.rot90(stored, -1))
    assert all(np.array_equal(image, stored) for image in shown.values())


def test_a_mask_that_exif_turns(tmp_path):
    path = save(tmp_path / "a.png", (GREY > 99).astype(np.uint8), exif=exif(6))
    assert np.array_equal(read_mask(path), np.rot90(GREY > 99, -1))
    with data_error(path, "EXIF", "upright"):
        read_label(path)


def test_large_images_are_read_up_to_a_limit(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", COLOURS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(path), COLOURS)
        assert np.array_equal(read_image(save(tmp_path / "a.tif", COLOURS)), COLOURS)
        assert image_size(path) == (20, 30)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(decoding, "MOST_PIXELS", 599)
    for read in (read_image, image_size, read_photo, read_label):
        with data_error(path, "30 x 20 pixels", "shrink"):
            read(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_while_another_thread_opens_an_image_does_not_hang(tmp_path):
    path, done = save(tmp_path / "a.png", COLOURS), threading.Event()

    def open_images():
        while not done.is_set():
            image_size(path)

    thread = threading.Thread(target=open_images)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if not child:
                image_size(path)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"/annex/objects/MD5E-s9--0.jpg\n", "git annex get"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"II*\0", "TIFF"),
        (b"<html>not found</html>", "not an image"),
    ],
)
def test_what_a_file_holds_instead_is_named(tmp_path, content, words):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_image, image_size, read_photo, read_label, read_mask):
        with data_error(path, "cannot be read", words):
            read(path)


def test_a_link_to_nothing_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    path.symlink_to("../.git/annex/objects/x.jpg")
    for read in (read_image, image_size, read_photo, read_label, read_mask):
        with data_error(path, "a link to ../.git/annex/objects/x.jpg", "missing", "git annex get"):
            read(path)
    assert find_photos(tmp_path, "query") == [path]
    link = tmp_path / "folder"
    link.symlink_to("nowhere")
    with data_error("a link to nowhere"):
        find_photos(link, "query")


def test_names_of_files(tmp_path):
    for name in ("b.JPG", "a.jpeg", "._a.jpg", ".DS_Store", "Thumbs.db", ".c.png", "d.TIFF"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "e.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.jpeg", "b.JPG", "d.TIFF"]
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("a file system of UTF-8 names alone")
    with data_error(rb"caf\xe9.jpg".decode(), "not UTF-8", "rename"):
        find_photos(tmp_path, "query")
    with data_error(rb"caf\xe9.jpg".decode(), "not UTF-8"):
        find_photos(tmp_path / os.fsdecode(b"caf\xe9.jpg"), "query")


def test_masks_of_an_example_in_any_spelling(tmp_path):
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    (tmp_path / "masks").mkdir()
    photo = save(tmp_path / f"{composed}.jpg", COLOURS)
    beside = save(tmp_path / f"{decomposed}.MASK.PNG", GREY, format="PNG")
    below = save(tmp_path / "masks" / f"{decomposed}.PNG", GREY, format="PNG")
    assert find_masks(photo) == [beside, below]
    assert find_photos(tmp_path, "support") == [photo]


def test_photos_in_subfolders_are_not_overlooked(tmp_path, caplog):
    (tmp_path / "holiday").mkdir()
    save(tmp_path / "holiday" / "a.jpg", COLOURS)
    with data_error("no image in this folder", "the 1 images in holiday/"):
        find_photos(tmp_path, "query")
    photo = save(tmp_path / "b.jpg", COLOURS)
    assert find_photos(tmp_path, "query") == [photo]
    assert "1 images; the 1 images in holiday/" in caplog.text
