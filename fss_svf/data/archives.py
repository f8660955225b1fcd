"""Downloaded archives: found where a dataset's root is, and unpacked into it whole or not at all."""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fss_svf.console import progress
from fss_svf.errors import DataError
from fss_svf.lock import locked

log = logging.getLogger(__name__)

ENDING = re.compile(r"\.(tar|tar\.gz|tgz|zip)$", re.IGNORECASE)
FIRST_MEMBERS = 5
# Members behind a larger one are not looked at for a folder's name: a .tgz must be decompressed up to there.
LARGE = 64 << 20
CHUNK = 1 << 20
# Backslashes and drives lead elsewhere on Windows only; a NUL nowhere, but no file can have one in its name.
TRICK = re.compile(r"\\|\0|(^|/)[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """An entry of an archive. kind: "file", "folder", or in a message's words what else it is."""

    name: str
    kind: str
    size: int
    open: Callable[[], Any]

    @property
    def folders(self) -> tuple[str, ...]:
        parts = PurePosixPath(self.name).parts
        return parts if self.kind == "folder" else parts[:-1]

    @property
    def is_junk(self) -> bool:
        """What macOS adds to the archives it makes."""
        path = PurePosixPath(self.name)
        return "__MACOSX" in path.parts or path.name.startswith("._")


def unpack_until(done: Callable[[], bool], root: Path, wanted: Sequence[str]) -> None:
    """Unpack what find_archive finds, each archive once, until `done()` or until there is no other. Raises DataError."""
    tried: list[Path] = []
    while not done() and (archive := find_archive(root, wanted, tried)):
        unpack(archive, root)
        tried.append(archive)


def find_archive(root: Path, wanted: Sequence[str], tried: Collection[Path] = ()) -> Path | None:
    """The archive in `root`, or else beside it, that begins with a folder in `wanted`; of several the first by name.

    Only its first members are looked at. An archive that cannot be opened is passed over, with a log line where it lies in
    `root`; but for one that is called like a wanted folder, as train2014.zip: that raises DataError.

    tried: archives that are passed over too.
    """
    damaged: list[DataError] = []
    for folder in (root, root.absolute().parent):
        for archive in _archives(folder):
            try:
                if archive not in tried and _holds(archive, wanted):
                    return archive
            except DataError as error:
                if ENDING.sub("", archive.name) in wanted:
                    raise
                damaged += [error] * (folder == root)
    for each in damaged:
        log.warning("passed over: %s", each)
    return None


def unpack(archive: Path, root: Path) -> None:
    """Write the folders and files of a .tar, .tgz or .zip into `root`, which is made; what is there already is kept.

    Raises DataError when the archive is damaged or encrypted, or holds a link or a path that leads out of `root`, and
    when `root` cannot be written; ConfigError while another process unpacks it. Nothing of the archive is left there then.
    """
    # In root itself, so that moving from here to there is a renaming; a kill leaves it to the next call.
    temporary = root / f".unpacking-{archive.name}"
    try:
        with locked(temporary, "unpacks this archive"):
            try:
                files = temporary / "files"  # beside the lock
                if files.exists():
                    shutil.rmtree(files)
                files.mkdir()
                _extract(archive, files)
                _merge(files, root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{root}: {archive} cannot be unpacked into it ({error.strerror or error}); make room and the right to write "
            f"there, or unpack it yourself elsewhere and set dataset.root to that folder"
        ) from None


def _extract(archive: Path, folder: Path) -> None:
    """Raises OSError for what goes wrong in `folder` only."""
    with _reading(archive):
        file, size = archive.open("rb"), archive.stat().st_size
    with file, progress(size, f"unpacking {archive.name}", "B") as bar:
        for member in _members(archive, file):
            path = folder / _safe_path(archive, member)
            if member.is_junk:
                continue
            if member.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as copy:
                for chunk in _content(archive, member):
                    copy.write(chunk)
                    bar.update(file.tell() - bar.n)
        bar.update(size - bar.n)


def _merge(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        there = target / entry.name
        if entry.is_dir() and there.is_dir():
            _merge(entry, there)
        elif not (there.exists() or there.is_symlink()):
            entry.rename(there)


def _safe_path(archive: Path, member: Member) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or TRICK.search(member.name):
        wrong = "has a path that may lead out of the folder"
    elif member.kind not in ("file", "folder"):
        wrong = f"is {member.kind}"
    elif member.kind == "file" and not path.parts:
        wrong = "is a file without a name"
    else:
        return path
    raise DataError(
        f"{archive}: member {member.name!r} {wrong}, so nothing was unpacked; if you trust the archive, unpack it "
        f"yourself and set dataset.root to that folder"
    )


def _archives(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if ENDING.search(p.name) and p.is_file())
    except OSError:  # no such folder, or none that may be listed
        return []


def _holds(archive: Path, wanted: Sequence[str]) -> bool:
    paths = [PurePosixPath(path).parts for path in wanted]
    with _reading(archive):
        file = archive.open("rb")
    with file:
        for member in islice((m for m in _members(archive, file) if not m.is_junk), FIRST_MEMBERS):
            if any(member.folders[: len(parts)] == parts for parts in paths):
                return True
            if member.size > LARGE:
                return False
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """What reading a damaged archive raises becomes one DataError. Only calls of the libraries belong in the block."""
    try:
        yield
    except Exception as error:  # bytes changed at random made them raise ten different ones
        raise DataError(
            f"{archive}: cannot be read ({str(error) or type(error).__name__}); half a download? get it anew"
        ) from None


def _members(archive: Path, file: BinaryIO) -> Iterator[Member]:
    """In the order in which they lie in the file, so that each can be read as it comes."""
    with _reading(archive):
        # Not by the file's name: a browser may decompress a .tgz on the way and keep the name.
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(b"PK"):
            yield from _zip_members(file)
        elif magic.startswith(b"\x1f\x8b"):
            # tarfile's own streams do not check the checksum of a gzip file.
            yield from _tar_members(gzip.GzipFile(fileobj=file))
        else:
            yield from _tar_members(file)


def _content(archive: Path, member: Member) -> Iterator[bytes]:
    with _reading(archive), member.open() as content:
        while chunk := content.read(CHUNK):
            yield chunk


class _Header(tarfile.TarInfo):
    """tarfile takes a cut or damaged header for the end of the archive; that is a block of zeros and nothing else."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):
                raise
            raise tarfile.ReadError(str(error)) from None


def _tar_members(stream: Any) -> Iterator[Member]:
    tar = tarfile.TarFile(fileobj=stream, tarinfo=_Header)
    for info in tar:
        if info.size < 0:
            raise tarfile.ReadError("negative size")  # tarfile would go back, and round and round
        if info.isreg():
            kind = "file"
        elif info.isdir():
            kind = "folder"
        else:
            kind = "a link" if info.issym() or info.islnk() else "a device or the like"
        yield Member(info.name, kind, info.size, partial(tar.extractfile, info))
    # The checksum of a gzip file stands at its end, behind that of the tar.
    while stream.read(CHUNK):
        pass


def _zip_members(file: BinaryIO) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        # Half a download lacks the directory at its end. The header at its start names the first member: so it is found,
        # and its unpacking tells what is wrong with it.
        file.seek(0)
        header = file.read(30)
        name = file.read(int.from_bytes(header[26:28], "little")).decode(errors="replace")
        yield Member(name, "folder", 0, lambda: None)
        raise
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        mode = stat.S_IFMT(info.external_attr >> 16)  # 0 when it was not made on Unix
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "a link" if mode == stat.S_IFLNK else "a device or the like"
        elif info.flag_bits & 1:
            kind = "encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = "compressed in a way that is not read here"
        else:
            kind = "folder" if mode == stat.S_IFDIR or info.filename.endswith("/") else "file"
        yield Member(info.filename, kind, info.file_size, partial(archive.open, info))
