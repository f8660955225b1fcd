"""Archives: found by what they hold, unpacked whole, and nothing written when they are damaged or not to be trusted."""

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


def test_unpacks_files_and_folders(archive, root):
    write(archive, [("VOC", None), *FILES.items(), ("none/here", None)])
    before = archive.read_bytes()
    unpack(archive, root)
    assert tree(root) == {**FILES, "none/here": None}
    assert archive.read_bytes() == before


def test_root_that_does_not_exist_yet(archive, tmp_path):
    unpack(archive, tmp_path / "new" / "root")
    assert tree(tmp_path / "new" / "root") == FILES


def test_archive_that_lies_in_the_root(archive, root):
    inside = archive.rename(root / archive.name)
    unpack(inside, root)
    assert tree(root).keys() == {*FILES, archive.name}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(root, tmp_path, format):
    name = f"{'f' * 90}/{'g' * 90}.png"
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    unpack(path, root)
    assert tree(root) == {name: b"abc"}


def test_dots_and_odd_names(archive, root):
    write(archive, [(".", None), ("./a/./b..c", b"1"), ("..a/é ü", b"2"), ("12:30/xx:y", b"3")])
    unpack(archive, root)
    assert tree(root) == {"a/b..c": b"1", "..a/é ü": b"2", "12:30/xx:y": b"3"}


def test_kind_is_told_by_the_content(root, tmp_path):
    """As a browser leaves it that decompressed a .tgz on the way."""
    path = tmp_path / "benchmark.tgz"
    path.write_bytes(tar_bytes(FILES.items()))
    assert find_archive(root, ("VOC",)) == path
    unpack(path, root)
    assert tree(root) == FILES


def test_junk_of_macos_is_left_out(archive, root):
    junk = [("__MACOSX", None), ("__MACOSX/VOC/._a", b"x"), ("VOC/._a.jpg", b"x"), ("._VOC", b"x"), ("./._", b"x")]
    write(archive, [*junk, *FILES.items()])
    unpack(archive, root)
    assert tree(root) == FILES


def test_junk_of_macos_is_not_looked_at(archive, root):
    write(archive, [*((f"__MACOSX/x/{number}", b"") for number in range(9)), *FILES.items()])
    assert find_archive(root, ("VOC",)) == archive
    assert find_archive(root, ("x",)) is None


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
    states = []

    def recorded(*arguments):
        bar = console.progress(*arguments)
        update = bar.update
        bar.update = lambda step: (update(step), states.append((bar.n, bar)))
        return bar

    monkeypatch.setattr(archives, "CHUNK", 1000)
    monkeypatch.setattr(archives, "progress", recorded)
    write(archive, [("zeros", bytes(50_000)), *FILES.items()])
    unpack(archive, root)
    counts = [count for count, _ in states]
    bar = states[-1][1]
    assert len(counts) > 50
    assert counts == sorted(counts)
    assert counts[-1] == bar.total == archive.stat().st_size
    assert (bar.unit, bar.unit_scale) == ("B", True)
    assert archive.name in bar.desc


def test_other_bars_are_not_scaled():
    with console.progress(20_000, "x", "image") as bar:
        assert not bar.unit_scale


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


def test_file_where_a_folder_would_go_is_kept(archive, root):
    (root / "VOC").write_bytes(b"mine")
    unpack(archive, root)
    assert tree(root) == {"VOC": b"mine"}


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
    written = archives._content

    def interrupted(archive, member):
        if member.name.endswith("train.txt"):
            assert any(root.rglob("a.jpg"))  # in the middle, then
            raise KeyboardInterrupt
        return written(archive, member)

    monkeypatch.setattr(archives, "_content", interrupted)
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

LEAD_OUT = ["/a", "//a", "../a", "VOC/../../a", "VOC/..", "..", "VOC\\..\\a", "C:/a", "c:a", "VOC/C:a"]


@pytest.mark.parametrize("name", LEAD_OUT)
def test_path_that_leads_out(archive, root, name):
    write(archive, [*FILES.items(), (name, b"x")])
    with data_error(archive, repr(name), "lead out", "dataset.root"):
        unpack(archive, root)
    assert tree(root.parent) == {"data": None, archive.name: archive.read_bytes()}


@pytest.mark.parametrize("name", ["../a", "/a"])
def test_folder_that_leads_out(archive, root, name):
    write(archive, [(name, None)])
    with data_error(archive, name, "lead out"):
        unpack(archive, root)
    assert tree(root.parent) == {"data": None, archive.name: archive.read_bytes()}


def test_path_in_an_extended_header_that_leads_out(root, tmp_path):
    info = tarfile.TarInfo("a")
    info.pax_headers = {"path": "../b"}
    with data_error("'../b'", "lead out"):
        unpack(write(tmp_path / "a.tar", [info]), root)


TYPES = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize("ending", [".tar", ".tgz"])
@pytest.mark.parametrize("type", TYPES)
def test_link_or_device_in_a_tar(root, tmp_path, ending, type):
    info = tarfile.TarInfo("VOC/x")
    info.type, info.linkname = type, "VOC/empty.txt"
    path = write(tmp_path / f"a{ending}", [*FILES.items(), info])
    with data_error(path, "'VOC/x'", "is a link" if type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "is a device"):
        unpack(path, root)
    assert tree(root) == {}


@pytest.mark.parametrize("name", ["VOC/x", "VOC/x/"])
@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_link_or_device_in_a_zip(root, tmp_path, name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o777) << 16
    path = write(tmp_path / "a.zip", [*FILES.items(), info])
    with data_error(path, repr(name), "is a link" if mode == stat.S_IFLNK else "is a device"):
        unpack(path, root)
    assert tree(root) == {}


def test_folder_of_a_zip_by_its_mode(root, tmp_path):
    info = zipfile.ZipInfo("VOC/x")
    info.external_attr = (stat.S_IFDIR | 0o755) << 16
    unpack(write(tmp_path / "a.zip", [info]), root)
    assert tree(root) == {"VOC/x": None}


def test_file_after_a_link_of_its_folder(root, tmp_path):
    """The way to write elsewhere without any '..' in a path."""
    (tmp_path / "elsewhere").mkdir()
    info = tarfile.TarInfo("VOC")
    info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
    with data_error("'VOC' is a link"):
        unpack(write(tmp_path / "a.tar", [info, ("VOC/x", b"x")]), root)
    assert tree(tmp_path / "elsewhere") == tree(root) == {}


def test_file_without_a_name(archive, root):
    write(archive, [*FILES.items(), (".", b"x")])
    with data_error(archive, "without a name"):
        unpack(archive, root)
    assert tree(root) == {}


def patched(path, local, central, value):
    """Write one byte into the last member's header and into its entry in the directory."""
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\3\4") + local] = raw[raw.rindex(b"PK\1\2") + central] = value
    path.write_bytes(raw)


def test_encrypted_zip(root, tmp_path):
    path = write(tmp_path / "a.zip")
    patched(path, 6, 8, 1)
    with data_error(path, "'VOC/empty.txt' is encrypted, so nothing was unpacked"):
        unpack(path, root)
    assert tree(root) == {}


def test_compression_of_other_programs(root, tmp_path):
    path = write(tmp_path / "a.zip")
    patched(path, 8, 10, 9)  # Deflate64, as Windows uses for large files
    with data_error(path, "'VOC/empty.txt'", "compressed in a way"):
        unpack(path, root)


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
        with data_error(archive, "half a download? get it anew"):
            unpack(archive, root)
        assert tree(root) == {}, length
    archive.write_bytes(whole)
    unpack(archive, root)
    assert tree(root) == FILES


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "gzip"])
def test_tar_cut_between_two_members(root, tmp_path, pack):
    """tarfile itself takes this for the whole archive."""
    path = tmp_path / "a.tar"
    whole = tar_bytes(FILES.items())
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        members = tar.getmembers()
    ends = [info.offset_data + -(-info.size // 512) * 512 for info in members]
    for end in ends:
        path.write_bytes(pack(whole[:end]))
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) == 1 + ends.index(end)
        with data_error(path, "half a download"):
            unpack(path, root)
        assert tree(root) == {}
    # one of the two blocks of zeros is enough
    path.write_bytes(pack(whole[: ends[-1] + 512]))
    unpack(path, root)
    assert tree(root) == FILES


def test_damaged_header_in_the_middle_of_a_tar(root, tmp_path):
    """tarfile itself takes this too for the end."""
    path = write(tmp_path / "a.tar")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"VOC/Lists") + 5] ^= 1
    path.write_bytes(raw)
    with data_error(path, "bad checksum", "get it anew"):
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
        with data_error(path, "CRC", "get it anew"):
            unpack(path, root)
        assert tree(root) == {}


def test_damaged_anywhere(archive, root):
    """Whatever the libraries raise, it comes out as one line, and nothing stays behind but the whole."""
    whole = archive.read_bytes()
    rng = np.random.default_rng(7)
    messages = []
    for trial in range(150):
        raw = bytearray(whole)
        for position in rng.integers(0, len(raw), 3):
            raw[position] = rng.integers(256)
        archive.write_bytes(raw)
        try:
            unpack(archive, root / str(trial))
        except DataError as error:
            messages.append(str(error))
            assert tree(root / str(trial)) == {}
    assert len(messages) > 20
    assert "\n" not in "".join(messages)


def test_size_beyond_memory(root, tmp_path):
    """The length of a long name, as damage may leave it: what is read at once."""
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 60
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with data_error(path, "half a download"):
        unpack(path, root)


def test_negative_size(root, tmp_path):
    """tarfile may go back by it, read the same member again, and so on without an end."""
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("a")
    info.size = -512
    path.write_bytes(tarfile.TarInfo("b").tobuf() + info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with data_error(path, "negative size", "half a download"):
        unpack(path, root)


@pytest.mark.parametrize("ending", KINDS)
def test_page_of_an_error_instead_of_the_archive(root, tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_text("<html>404 Not Found</html>\n" * 100)
    with data_error(path, "get it anew"):
        unpack(path, root)


# ---------------------------------------------------------------------------------------------------------------------
# Where nothing can be written


def test_root_that_is_a_file(archive, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    with data_error(path, archive, "set dataset.root"):
        unpack(archive, path)
    assert path.read_bytes() == b"mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_root(archive, root):
    root.chmod(0o555)
    try:
        with data_error(root, "Permission denied", "unpack it yourself elsewhere and set dataset.root"):
            unpack(archive, root)
    finally:
        root.chmod(0o755)
    assert tree(root) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_archive(archive, root):
    archive.chmod(0)
    with data_error(archive, "Permission denied"):
        unpack(archive, root)
    assert find_archive(root, ("VOC",)) is None


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
        assert found(root, "a.jpg") is None  # a file, no folder
        assert found(root, "VO") is None
        assert found(root) is None
        (folder / name).unlink()


def test_found_by_an_empty_folder(archive, root):
    write(archive, [("VOC/Images", None)])
    assert find_archive(root, ("VOC/Images",)) == archive


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


def test_beside_the_current_folder(archive, root, monkeypatch):
    monkeypatch.chdir(root)
    assert find_archive(Path("."), ("VOC",)) == archive
    assert find_archive(Path("sub"), ("VOC",)) is None


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


@pytest.mark.parametrize("ending", KINDS)
def test_half_a_download_is_found_and_said(root, ending):
    path = write(root / f"annotations_2014{ending}")
    path.write_bytes(path.read_bytes()[:4000])
    assert find_archive(root, ("other",)) is None
    assert find_archive(root, ("VOC/Images",)) == path
    with data_error(path, "half a download"):
        unpack(path, root)


@pytest.mark.parametrize("raw", [b"", b"P", b"PK\3\4", b"\x1f\x8b", b"<html>404</html>"])
@pytest.mark.parametrize("ending", [*KINDS, ".tar.gz"])
def test_unreadable_archive_matters_by_its_name_only(root, ending, raw):
    path = root / f"train2014{ending}"
    path.write_bytes(raw)
    assert find_archive(root, ("VOC", "train")) is None
    with data_error(path, "half a download? get it anew"):
        find_archive(root, ("val2014", "train2014"))
    write(root / "whole.zip")
    assert found(root, "VOC") == "data/whole.zip"


def test_unreadable_archive_in_the_root_is_told_where_nothing_else_is_found(root, caplog):
    (root / "annotations_2014.zip").write_bytes(b"<html>404</html>")
    (root.parent / "elsewhere.zip").write_bytes(b"")
    write(root / "whole.zip")
    assert found(root, "VOC") == "data/whole.zip"
    assert not caplog.records
    assert find_archive(root, ("annotations",)) is None
    (record,) = caplog.records
    assert f"passed over: {root}/annotations_2014.zip: cannot be read" in record.getMessage()


def test_unpacks_one_after_another_until_done(root):
    for name, file in (("a.zip", "VOC/1"), ("b.tar", "VOC/2"), ("c.tgz", "VOC/3")):
        write(root / name, [(file, b"")])
    unpack_until((root / "VOC" / "2").exists, root, ("VOC",))
    assert [(root / "VOC" / n).exists() for n in "123"] == [True, True, False]
    # None of them has what is asked for: each is tried, and that is the end of it.
    unpack_until(lambda: False, root, ("VOC",))
    assert (root / "VOC" / "3").exists()


def test_nothing_is_unpacked_when_all_is_there(archive, root):
    unpack_until(lambda: True, root, ("VOC",))
    assert tree(root) == {}
