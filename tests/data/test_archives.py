"""Archives: found by what they hold, unpacked whole, and nothing written when they are damaged or not to be trusted."""

import contextlib
import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fss_svf import console
from fss_svf.data import archives
from fss_svf.data.archives import find_archive, unpack, unpack_until
from fss_svf.errors import ConfigError, DataError
from fss_svf.lock import locked
from tests.one_line import data_error

NOISE = np.random.default_rng(0).bytes(5000)  # does not get shorter when it is compressed
FILES = {"VOC/Images/a.jpg": NOISE, "VOC/Lists/train.txt": b"a\n" * 900, "VOC/empty.txt": b""}
KINDS = (".tar", ".tgz", ".zip")


def tar_bytes(members, gz=False):
    """members: names and contents, None for a folder; or TarInfo objects, which have no content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if gz else "w") as tar:
        for member in members:
            name, content = member if isinstance(member, tuple) else (member.name, None)
            info = tarfile.TarInfo(name) if isinstance(member, tuple) else member
            if isinstance(member, tuple) and content is None:
                info.type = tarfile.DIRTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def zip_bytes(members):
    """members: names and contents, None for a folder; or ZipInfo objects, which get some content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for member in members:
            name, content = member if isinstance(member, tuple) else (member, b"../..")
            file.writestr(f"{name}/" if content is None else name, content or b"")
    return buffer.getvalue()


def write(path, members=None):
    members = list(FILES.items() if members is None else members)
    path.write_bytes(zip_bytes(members) if path.suffix == ".zip" else tar_bytes(members, path.suffix != ".tar"))
    return path


def tree(root):
    """Contents by path; None for a folder that is empty."""
    entries = [path for path in root.rglob("*") if path.is_file() or not any(path.iterdir())]
    return {path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in entries}


class NoBar(contextlib.nullcontext):
    n = 0

    def __init__(self, *arguments):
        super().__init__(self)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    return root


@pytest.fixture(params=KINDS)
def archive(request, tmp_path):
    return write(tmp_path / f"voc{request.param}")


# ---------------------------------------------------------------------------------------------------------------------
# Unpacking


def test_unpacks_files_and_folders(archive, tmp_path):
    """Into a root that does not exist yet."""
    write(
        archive,
        [
            (".", None),
            ("VOC", None),
            *FILES.items(),
            ("none/here", None),
            ("./a/./b..c", b"1"),
            ("..a/\u00e9 \u00fc", b"2"),
        ],
    )
    before, root = archive.read_bytes(), tmp_path / "new" / "root"
    unpack(archive, root)
    assert tree(root) == {**FILES, "none/here": None, "a/b..c": b"1", "..a/\u00e9 \u00fc": b"2"}
    assert archive.read_bytes() == before


def test_kind_is_told_by_the_content(root, tmp_path):
    """As a browser leaves it that decompressed a .tgz on the way."""
    path = tmp_path / "benchmark.tgz"
    path.write_bytes(tar_bytes(FILES.items()))
    assert find_archive(root, ("VOC",)) == path
    unpack(path, root)
    assert tree(root) == FILES


def test_modes_of_the_archive_are_not_taken(root, tmp_path):
    info = tarfile.TarInfo("a")
    info.mode = 0o4777
    old = os.umask(0o027)
    try:
        unpack(write(tmp_path / "a.tar", [info]), root)
    finally:
        os.umask(old)
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o640


def test_bar_counts_the_bytes_of_the_archive(archive, root, monkeypatch):
    counts = []

    class Bar(NoBar):
        def update(self, step):
            self.n += step
            counts.append(self.n)

    monkeypatch.setattr(archives, "progress", Bar)
    write(archive, [(f"x/{n}", np.random.default_rng(n).bytes(5000)) for n in range(20)])
    unpack(archive, root)
    assert len(set(counts)) > 5
    assert archive.stat().st_size / 2 < counts[-1] <= archive.stat().st_size
    assert counts == sorted(counts)


def test_a_bar_of_bytes_alone_is_scaled():
    for unit, scaled in (("B", True), ("image", False)):
        with console.progress(20_000, "x", unit) as bar:
            assert bool(bar.unit_scale) == scaled


# ---------------------------------------------------------------------------------------------------------------------
# What is there already, and what a kill left


def test_merges_and_keeps_what_is_there(archive, root):
    (root / "VOC" / "Images").mkdir(parents=True)
    (root / "VOC" / "Images" / "a.jpg").write_bytes(b"mine")
    (root / "VOC" / "Images" / "b.jpg").write_bytes(b"mine too")
    (root / "VOC" / "empty.txt").symlink_to("nowhere")
    unpack(archive, root)
    assert (root / "VOC" / "empty.txt").is_symlink()
    (root / "VOC" / "empty.txt").unlink()
    mine = {"VOC/Images/a.jpg": b"mine", "VOC/Images/b.jpg": b"mine too"}
    assert tree(root) == {"VOC/Lists/train.txt": FILES["VOC/Lists/train.txt"], **mine}


def test_leftovers_of_a_kill_are_replaced(archive, root):
    left = root / f".unpacking-{archive.name}" / "VOC"
    left.mkdir(parents=True)
    (left / "empty.txt").write_bytes(b"half")
    (left / "other.txt").write_bytes(b"of another archive of that name")
    unpack(archive, root)
    assert tree(root) == FILES


def test_two_at_once(archive, root):
    """The second leaves the first's files alone."""
    unpacking = root / f".unpacking-{archive.name}"
    with locked(unpacking):
        (unpacking / "files").mkdir()
        (unpacking / "files" / "a.jpg").write_bytes(b"half")
        with pytest.raises(ConfigError, match="another process unpacks this archive"):
            unpack(archive, root)
        assert (unpacking / "files" / "a.jpg").read_bytes() == b"half"
    unpack(archive, root)
    assert tree(root) == FILES


def test_interrupted_while_unpacking(archive, root, monkeypatch):
    class Interrupting(NoBar):
        def update(self, step):
            assert any(root.rglob("a.jpg"))  # in the middle, then
            raise KeyboardInterrupt

    monkeypatch.setattr(archives, "progress", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, root)
    assert tree(root) == {}
    monkeypatch.undo()
    unpack(archive, root)
    assert tree(root) == FILES


def test_interrupted_while_moving(archive, root, monkeypatch):
    """Every file is whole at any time, and the next call moves the others."""
    (root / "VOC").mkdir()
    rename, moved = Path.rename, []

    def interrupted(self, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(rename(self, target))

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, root)
    assert tree(root).items() < FILES.items()
    monkeypatch.undo()
    unpack(archive, root)
    assert tree(root) == FILES


# ---------------------------------------------------------------------------------------------------------------------
# Not to be trusted

LEAD_OUT = ["/a", "../a", "VOC/../../a", "..", "VOC\\..\\a", "C:/a"]


@pytest.mark.parametrize("content", [b"x", None], ids=["file", "folder"])
@pytest.mark.parametrize("name", LEAD_OUT)
def test_nothing_leads_out(archive, root, name, content):
    """The libraries refuse a path that leads out, or cut off what does."""
    write(archive, [*FILES.items(), (name, content)])
    refused = None
    try:
        unpack(archive, root)
    except DataError as error:
        refused = str(error)
    assert {path.name for path in root.parent.iterdir()} == {"data", archive.name}
    if refused is None:
        assert tree(root).items() >= FILES.items()
        assert "../a" not in name or archive.suffix == ".zip"
    else:
        assert tree(root) == {}
        assert str(archive) in refused
        assert "dataset.root" in refused


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_link_or_device(root, tmp_path, kind):
    """Also the way to write elsewhere without any '..' in a path: a file after a link of its folder."""
    (tmp_path / "elsewhere").mkdir()
    info = tarfile.TarInfo("VOC/x")
    info.type, info.linkname = kind, str(tmp_path / "elsewhere")
    path = write(tmp_path / "a.tgz", [*FILES.items(), info, ("VOC/x/y", b"y")])
    with data_error(path, "'VOC/x' is a link or a device", "dataset.root"):
        unpack(path, root)
    assert tree(root) == tree(tmp_path / "elsewhere") == {}


def test_a_link_in_a_zip_is_a_file(root, tmp_path):
    info = zipfile.ZipInfo("VOC/x")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    unpack(write(tmp_path / "a.zip", [info]), root)
    assert tree(root) == {"VOC/x": b"../.."}
    assert not (root / "VOC/x").is_symlink()


def test_an_interpreter_without_the_filter_says_which_has_it(root, tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with data_error("3.10.12", "dataset.root"):
        unpack(write(tmp_path / "a.tar"), root)
    assert tree(root) == {}


def test_encrypted_zip(root, tmp_path):
    path = write(tmp_path / "a.zip")
    raw = bytearray(path.read_bytes())  # the flag, in the last member's header and in its entry in the directory
    raw[raw.rindex(b"PK\3\4") + 6] = raw[raw.rindex(b"PK\1\2") + 8] = 1
    path.write_bytes(raw)
    with data_error(path, "encrypted", "unpack it yourself"):
        unpack(path, root)
    assert tree(root) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Damaged


def cuts(archive):
    """Lengths that lose something: from nothing at all to the last byte that counts."""
    whole = len(archive.read_bytes())
    if archive.suffix == ".tar":
        with tarfile.open(archive) as tar:
            whole = tar.getmembers()[-1].offset_data + 512  # the first block of zeros; what follows is padding
    return [0, 1, 3, 10, 100, 511, 512, 513, 1024, *range(1500, whole - 60, 500), whole - 50, whole - 2, whole - 1]


def test_half_a_download(archive, root):
    whole = archive.read_bytes()
    for length in cuts(archive):
        archive.write_bytes(whole[:length])
        with data_error(archive, "get it again"):
            unpack(archive, root)
        assert tree(root) == {}, length
    archive.write_bytes(whole)
    unpack(archive, root)
    assert tree(root) == FILES


def test_tar_cut_between_two_members(root, tmp_path):
    """tarfile itself takes this for the whole archive."""
    path = tmp_path / "a.tar"
    whole = tar_bytes(FILES.items())
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [info.offset_data + -(-info.size // 512) * 512 for info in tar]
    for end in ends:
        path.write_bytes(whole[:end])
        with data_error(path, "get it again"):
            unpack(path, root)
        assert tree(root) == {}
    # one of the two blocks of zeros is enough
    path.write_bytes(whole[: ends[-1] + 512])
    unpack(path, root)
    assert tree(root) == FILES


def test_damaged_header_in_the_middle_of_a_tar(root, tmp_path):
    """tarfile itself takes this too for the end."""
    path = write(tmp_path / "a.tar")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"VOC/Lists") + 5] ^= 1
    path.write_bytes(raw)
    with data_error(path, "get it again"):
        unpack(path, root)
    assert tree(root) == {}


def test_damaged_content(root, tmp_path):
    """One bit of an image: the sizes stay right, only the checksums tell."""
    tgz, zipped = tmp_path / "a.tgz", tmp_path / "a.zip"
    tgz.write_bytes(gzip.compress(tar_bytes(FILES.items()), compresslevel=0))
    with zipfile.ZipFile(zipped, "w") as file:
        for name, content in FILES.items():
            file.writestr(name, content)
    for path in (tgz, zipped):
        raw = bytearray(path.read_bytes())
        raw[raw.index(NOISE[:100]) + 2500] ^= 1
        path.write_bytes(raw)
        with data_error(path, "CRC", "get it again"):
            unpack(path, root)
        assert tree(root) == {}


def test_damaged_anywhere(archive, root):
    """Whatever the libraries raise, it comes out as one line, and nothing stays behind but the whole."""
    whole = archive.read_bytes()
    rng = np.random.default_rng(7)
    messages = []
    for trial in range(60):
        raw = bytearray(whole)
        for position in rng.integers(0, len(raw), 3):
            raw[position] = rng.integers(256)
        archive.write_bytes(raw)
        try:
            unpack(archive, root / str(trial))
        except DataError as error:
            messages.append(str(error))
            assert tree(root / str(trial)) == {}
    assert len(messages) > 8
    assert "\n" not in "".join(messages)


# ---------------------------------------------------------------------------------------------------------------------
# Where nothing can be written


def test_root_that_is_a_file(archive, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    with data_error(path, archive, "set dataset.root"):
        unpack(archive, path)
    assert path.read_bytes() == b"mine"


def test_no_room(archive, root):
    """The limit on the size of a file fails in the middle of a write, as a full disk does."""
    resource = pytest.importorskip("resource")
    write(archive, [*FILES.items(), ("VOC/large", NOISE * 1000)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    try:
        with data_error(root, archive, "File too large", "make room"):
            unpack(archive, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(root) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Finding


def found(root, *wanted):
    archive = find_archive(root, wanted)
    return archive and archive.relative_to(root.parent).as_posix()


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.gz", "a.zip", "A.TAR.GZ", "A.ZIP"])
def test_found_in_the_root_and_beside_it(root, name):
    for folder, path in ((root, f"data/{name}"), (root.parent, name)):
        raw = zip_bytes(FILES.items()) if name.lower().endswith("zip") else tar_bytes(FILES.items(), "g" in name)
        (folder / name).write_bytes(raw)
        assert found(root, "VOC") == found(root, "x", "VOC/Images") == path
        assert found(root, "Images") is None  # not where it is wanted
        assert found(root, "VO") is None
        assert found(root) is None
        (folder / name).unlink()


def test_roots_own_before_that_beside_it_then_by_name(root):
    for path in ("a.zip", "data/c.tar", "data/b.tgz", "data/a.rar", "data/VOC.zip/a.zip"):
        (root.parent / path).parent.mkdir(exist_ok=True)
        write(root.parent / path)
    for expected in ("data/b.tgz", "data/c.tar", "a.zip"):
        assert found(root, "VOC") == expected
        (root.parent / expected).unlink()
    assert found(root, "VOC") is None


def test_beside_a_root_that_does_not_exist_yet(archive, tmp_path):
    assert find_archive(tmp_path / "new", ("VOC",)) == archive
    assert find_archive(tmp_path / "new" / "root", ("VOC",)) is None


def test_first_members_only(archive, root):
    write(archive, [*((f"x{number}/y", b"") for number in range(4)), ("VOC/a", b""), ("VOC2/a", b"")])
    assert find_archive(root, ("VOC",)) == archive
    assert find_archive(root, ("VOC2",)) is None


def test_not_behind_a_large_member(archive, root, monkeypatch):
    monkeypatch.setattr(archives, "LARGE", 4999)
    write(archive, [("x/y", NOISE), ("VOC/a", b"")])
    assert find_archive(root, ("x",)) == archive
    assert find_archive(root, ("VOC",)) is None
    monkeypatch.setattr(archives, "LARGE", 5000)
    assert find_archive(root, ("VOC",)) == archive


def test_finding_does_not_read_the_archive(root, tmp_path, monkeypatch):
    path = write(tmp_path / "a.tgz", [("VOC/a", b"a"), *((f"x/{number}", NOISE * 20) for number in range(20))])
    read = []

    class Counted(gzip.GzipFile):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr(archives.gzip, "GzipFile", Counted)
    assert find_archive(root, ("VOC",)) == path
    assert sum(read) < 5000
    assert find_archive(root, ("other",)) is None
    assert sum(read) < 10_000  # what is skipped is read by seek(), of five members
    assert min(read) >= 0


@pytest.mark.parametrize(
    "raw", [b"", b"P", b"PK\3\4", b"\x1f\x8b", b"<html>404</html>", zip_bytes(FILES.items())[:4000]]
)
def test_an_unreadable_archive_in_the_root_matters_where_none_fits(root, raw):
    """It may be half a download of the right one. Beside the root it is of something else."""
    (root.parent / "other.zip").write_bytes(raw)
    assert find_archive(root, ("VOC",)) is None
    path = root / "annotations.zip"
    path.write_bytes(raw)
    with data_error(path, "get it again"):
        find_archive(root, ("VOC",))
    write(root / "whole.tar")
    assert found(root, "VOC") == "data/whole.tar"


@pytest.mark.parametrize("ending", [".tar", ".tgz"])
def test_half_a_tar_is_found_and_said(root, ending):
    path = write(root.parent / f"voc{ending}")
    path.write_bytes(path.read_bytes()[:4000])
    assert find_archive(root, ("VOC/Images",)) == path
    with data_error(path, "get it again"):
        unpack(path, root)


def test_unpacks_one_after_another_until_done(root):
    for name, file in (("a.zip", "VOC/1"), ("b.tar", "VOC/2"), ("c.tgz", "VOC/3")):
        write(root / name, [(file, b"")])
    unpack_until(lambda: True, root, ("VOC",))
    assert not (root / "VOC").exists()
    unpack_until((root / "VOC" / "2").exists, root, ("VOC",))
    assert [(root / "VOC" / n).exists() for n in "123"] == [True, True, False]
    # None of them has what is asked for: each is tried, and that is the end of it.
    unpack_until(lambda: False, root, ("VOC",))
    assert (root / "VOC" / "3").exists()
