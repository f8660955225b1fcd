"""Decoding, and the cache of what was decoded: the same values, in every process, within the limit."""

import logging
import multiprocessing
import os
import pickle
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fss_svf.config import Augment
from fss_svf.data import cache
from fss_svf.data.augment import EvalTransform, TrainTransform
from fss_svf.data.cache import CachedSplit
from fss_svf.data.dataset import Split
from fss_svf.data.images import read_image, read_label
from fss_svf.data.toy import Toy
from tests.conftest import SMALL_TOY, toy_options
from tests.one_line import data_error

IMAGES = SMALL_TOY["val_images"]

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(FORK is None, reason="this system does not fork processes")


@pytest.fixture
def split(toy_root, tmp_path):
    """The validation split of a copy of the toy dataset, whose files a test may delete."""
    shutil.copytree(toy_root, tmp_path / "toy")
    return Toy(toy_options(tmp_path / "toy")).split("val")


def megabytes(split, numbers):
    """What the images of `numbers` take."""
    return 4 * split.index.sizes[numbers].astype(int).prod(axis=1).sum() / 1e6


def lose_files(split):
    """From here on nothing can be decoded."""
    for folder in {split.images, split.labels}:
        shutil.rmtree(folder)


def same(one, other):
    return all(a.dtype == b.dtype == np.uint8 and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# One process


def test_values_are_those_of_the_split(split):
    expected = [split.pair(number) for number in range(len(split.index))]
    cached = CachedSplit(split, 0.1)
    assert cached.index is split.index
    for decoded in (False, True):
        if decoded:
            lose_files(split)
        for number, pair in enumerate(expected):
            assert same((cached.image(number), cached.label(number)), pair)
            assert same(cached.pair(number), pair)


def test_images_are_decoded_once_and_only_when_asked_for(split):
    cached = CachedSplit(split, 0.1)
    pair = cached.pair(3)
    lose_files(split)
    assert same(cached.pair(3), pair)
    with data_error("no such file"):
        cached.pair(4)


def test_only_as_many_images_as_the_limit_allows(split):
    limit = megabytes(split, range(30)) / 1e3
    for gigabytes, slots in ((limit + 5e-10, 30), (limit - 5e-10, 29), (0.1, IMAGES), (0, 0)):
        cached = CachedSplit(split, gigabytes)
        expected = [cached.pair(number) for number in range(len(split.index))]
        assert f"{slots} of {IMAGES} images fit" in cached.describe()
        kept = [number for number in range(IMAGES) if not cached.pair(number)[0].flags.writeable]
        assert kept == list(range(slots))
        assert all(same(cached.pair(number), pair) for number, pair in enumerate(expected))


def test_description_names_the_memory(split):
    cached = CachedSplit(split, 0.05)
    assert (
        cached.describe()
        == f"cache: {IMAGES} of {IMAGES} images fit, {megabytes(split, range(IMAGES)) / 1e3:.2f} of 0.05 GB"
    )
    assert "\n" not in cached.describe()


def test_chosen_numbers_get_their_places_first_in_their_order(split):
    numbers = np.array([70, 4, 70, 5, 31, 4, 8])
    limit = megabytes(split, [70, 4, 5]) / 1e3
    cached = CachedSplit(split, limit, numbers)
    assert "3 of 5 images fit" in cached.describe()
    for number in range(IMAGES):
        cached.pair(number)
    lose_files(split)
    for number in (70, 4, 5):
        cached.pair(number)
    for number in (31, 8, 0, 69):
        with data_error("no such file"):
            cached.pair(number)


def test_cached_arrays_are_read_only_and_good_for_the_transforms(split):
    cached = CachedSplit(split, 0.1)
    cached.pair(0)
    image, label = cached.pair(0)
    before = image.copy(), label.copy()
    for array in (image, label):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    train = TrainTransform(97, Augment((0.9, 1.1), 10, 1.0, 1.0, 0.85, 1.0))
    outputs = [train(image, label, np.random.default_rng(0)), EvalTransform(97, "pad")(image, label)]
    assert same(cached.pair(0), before)
    for pair in outputs:
        for output in pair:
            assert output.flags.writeable
            assert not np.shares_memory(output, image)
            assert not np.shares_memory(output, label)


def test_cache_of_no_gigabytes_is_none(split, caplog):
    with caplog.at_level(logging.INFO):
        assert cache.cached(split, 0, np.arange(3)) is split
        assert not caplog.records
        cached = cache.cached(split, 0.1, np.arange(3))
    assert isinstance(cached, CachedSplit)
    assert [record.message for record in caplog.records] == [cached.describe()]
    assert "3 of 3" in cached.describe()


def test_a_split_of_its_own_kind_keeps_its_ways(split):
    """Folders of one's own name their files otherwise."""

    sizes = split.index.sizes
    number, meant = next((a, b) for b in range(IMAGES) for a in range(b) if np.array_equal(sizes[a], sizes[b]))
    further = meant - number

    class Other(Split):
        def image_path(self, number):
            return super().image_path(number + further)

        def label(self, number):
            return super().label(number + further)

    other = Other(split.index, split.images, split.image_ending, split.labels)
    cached = CachedSplit(other, 0.1)
    assert isinstance(cached, Split)
    assert cached.image_path(number) == split.image_path(meant)
    for _ in range(2):
        assert same(cached.pair(number), split.pair(meant))


def test_arrays_outlive_the_cache(split):
    cached = CachedSplit(split, 0.1)
    before = cached.pair(2)
    image, label = cached.pair(2)
    del cached
    assert same((image, label), before)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def test_limit_beyond_the_memory_names_its_key(split, tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable:    2000 kB\n")
    monkeypatch.setattr(cache, "_MEMINFO", meminfo)
    # What counts is what the images take: a limit beyond that costs nothing.
    assert CachedSplit(split, 0.002).slots < len(split.index)
    with data_error("cache_gb=9", "memory are free now", "lower it"):
        CachedSplit(split, 9)
    for wrong in (-1, float("nan")):
        with data_error(f"cache_gb={wrong}"):
            CachedSplit(split, wrong)
    # A system that does not tell.
    for text in (None, "MemTotal: 9000000 kB\n"):
        meminfo.write_text(text) if text else meminfo.unlink()
        assert f"{IMAGES} of {IMAGES}" in CachedSplit(split, 1e6).describe()


def test_memory_that_the_system_refuses(split, monkeypatch):
    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(cache.mmap, "mmap", refuse)
    with data_error("cache_gb=0.1", "Cannot allocate memory"):
        CachedSplit(split, 0.1)


@pytest.mark.parametrize("gigabytes", [0.1, 0])
def test_size_other_than_that_of_the_index(split, gigabytes):
    name = split.index.names[6]
    image, label = split.pair(6)
    Image.fromarray(image[:-3]).save(split.images / f"{name}.jpg")
    Image.fromarray(label[:-3]).save(split.labels / f"{name}.png")
    cached = CachedSplit(split, gigabytes)
    for _ in range(2):
        with data_error(f"{name}.jpg", f"{label.shape[1]} x {label.shape[0] - 3}", "when it was prepared", "prepare"):
            cached.pair(6)
    cached.pair(5)
    cached.pair(7)


@pytest.mark.parametrize("damage", ["truncated", "missing", "other size"])
def test_errors_are_not_kept(split, damage):
    path = split.images / f"{split.index.names[6]}.jpg"
    whole, pair = path.read_bytes(), split.pair(6)
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "missing":
        path.unlink()
    else:
        Image.fromarray(pair[0][:-3]).save(path)
    cached = CachedSplit(split, 0.1)
    for _ in range(2):
        with data_error(split.index.names[6]):
            cached.pair(6)
    path.write_bytes(whole)
    assert same(cached.pair(6), pair)
    lose_files(split)
    assert same(cached.pair(6), pair)


# ---------------------------------------------------------------------------------------------------------------------
# Many processes


class Pairs(torch.utils.data.Dataset):
    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split.index)

    def __getitem__(self, number):
        return self.split.pair(number)


def epoch(split, workers, context=None):
    loader = torch.utils.data.DataLoader(
        Pairs(split), batch_size=None, num_workers=workers, multiprocessing_context=context, collate_fn=copied
    )
    return [tuple(np.array(part) for part in pair) for pair in loader]


def copied(pair):
    """Read-only arrays would make the loader warn."""
    return tuple(torch.from_numpy(part.copy()) for part in pair)


@needs_fork
def test_a_second_epoch_of_forked_workers_decodes_nothing(split):
    expected = [split.pair(number) for number in range(len(split.index))]
    cached = CachedSplit(split, 0.1)
    for decoded in (False, True):
        if decoded:
            lose_files(split)
        found = epoch(cached, 2, FORK)  # workers of their own for each epoch
        assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    # And this process, from which they were forked, has them too.
    assert all(same(cached.pair(number), pair) for number, pair in enumerate(expected))


@needs_fork
def test_workers_that_fill_the_cache_at_once(split):
    """All of them all images, in orders of their own, each looking at what it is given."""
    expected = [split.pair(number) for number in range(len(split.index))]
    cached = CachedSplit(split, 0.1)
    start = FORK.Barrier(4)

    def work(seed):
        start.wait(20)
        order = np.random.default_rng(seed).permutation(np.tile(np.arange(IMAGES), 3))
        os._exit(0 if all(same(cached.pair(n), expected[n]) for n in order) else 1)

    processes = [FORK.Process(target=work, args=(seed // 2,)) for seed in range(4)]  # two by two in the same order
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    lose_files(split)
    assert all(same(cached.pair(number), pair) for number, pair in enumerate(expected))


def test_pickled_it_decodes_and_says_so_once(split, caplog):
    expected = [split.pair(number) for number in range(len(split.index))]
    cached = CachedSplit(split, 0.1)
    cached.pair(0)
    with caplog.at_level(logging.WARNING):
        copies = [pickle.loads(pickle.dumps(cached)) for _ in range(3)]
    (record,) = caplog.records
    assert "cache_gb" in record.message
    assert len(pickle.dumps(cached)) < 2e5  # without the memory
    for copy in copies:
        assert all(same(copy.pair(number), pair) for number, pair in enumerate(expected))
    assert f"{IMAGES} of {IMAGES}" in cached.describe()
    assert f"0 of {IMAGES}" in copies[0].describe()
    lose_files(split)
    assert same(cached.pair(0), expected[0])
    with data_error("no such file"):
        copies[0].pair(0)


def test_spawned_workers(split):
    cached = CachedSplit(split, 0.1)
    expected = [split.pair(number) for number in range(len(split.index))]
    assert all(same(one, other) for one, other in zip(epoch(cached, 1, "spawn"), expected, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Decoding


def photograph(height=150, width=200):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(image, (0, 0), 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"quality": 30},
        {"keep_rgb": True},
        {"mode": "L"},
        {"mode": "CMYK"},
    ],
)
def test_jpegs_are_what_pillow_makes_of_them(tmp_path, options):
    path = tmp_path / "a.jpg"
    options = dict(options)
    Image.fromarray(photograph()[:149, :199]).convert(options.pop("mode", "RGB")).save(path, **options)
    image = read_image(path)
    assert image.flags.c_contiguous
    # libjpeg-turbo in OpenCV and in Pillow; their releases may come to differ by a rounding.
    assert np.abs(image.astype(int) - np.asarray(Image.open(path).convert("RGB"))).max() <= 1


def no_image(*_):
    return None


def no_memory(*_):
    raise cv2.error("Too big image")


@pytest.mark.parametrize("failure", [no_image, no_memory])
def test_what_opencv_cannot_read_goes_to_pillow(tmp_path, monkeypatch, failure):
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph()).save(path)
    image = read_image(path)
    monkeypatch.setattr(cv2, "imdecode", failure)
    assert np.array_equal(read_image(path), image)


def test_exif_turns_nothing(tmp_path):
    """Labels are drawn on the pixels as they are stored, and so are the sizes of the index."""
    path, exif = tmp_path / "a.jpg", Image.Exif()
    Image.fromarray(photograph()).save(path)
    plain = read_image(path)
    for orientation in range(2, 9):
        exif[0x0112] = orientation
        Image.fromarray(photograph()).save(path, exif=exif)
        assert np.array_equal(read_image(path), plain)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_cut_short_is_an_error(tmp_path, progressive):
    """OpenCV would make the missing part grey."""
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(375, 500)).save(path, quality=90, progressive=progressive)
    whole = path.read_bytes()
    for length in (len(whole) // 2, 2 * len(whole) // 3, len(whole) - 1000, len(whole) - 20):
        path.write_bytes(whole[:length])
        with data_error(path, "truncated", "replace it"):
            read_image(path)
    # Bytes after the end are none of the image's.
    path.write_bytes(whole)
    image = read_image(path)
    path.write_bytes(whole + b"\0" * 9)
    assert np.array_equal(read_image(path), image)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_label_of_few_bits_is_refused(tmp_path, bits):
    """Pillow reads 3 of 2 bits as 255 and 1 of 4 bits as 17."""
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(bits))
    assert Image.open(path).mode == "L"
    with data_error(path, "palette or grey", f"mode L in {bits} bits"):
        read_label(path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_of_any_bits_holds_class_numbers(tmp_path, bits):
    path = tmp_path / "a.png"
    label = np.arange(16, dtype=np.uint8).reshape(2, 8) & (2**bits - 1)
    image = Image.fromarray(label, mode="P")
    image.putpalette([value for colour in range(2**bits) for value in (colour, 255 - colour, 7)])
    image.save(path, bits=bits)
    assert path.read_bytes()[24] == bits
    assert read_label(path).tolist() == label.tolist()


def grey_png(bits):
    """2 x 8 pixels of 0, 1, 2, ..; OpenCV and Pillow write grey in 1, 8 and 16 bits alone."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.arange(16, dtype=np.uint8).reshape(2, 8, 1) & (2**bits - 1)
    rows = np.packbits(np.unpackbits(pixels, axis=2)[..., -bits:].reshape(2, -1), axis=1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
