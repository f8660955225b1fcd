"""Downloaded archives: found where a dataset's root is, and unpacked into it whole or not at all."""

from __future__ import annotations

import gzip
import logging
import platform
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from fss_svf.console import progress
from fss_svf.errors import DataError
from fss_svf.lock import locked

log = logging.getLogger(__name__)

ENDING = re.compile(r"\.(tar|tar\.gz|tgz|zip)$", re.IGNORECASE)
FIRST_MEMBERS = 5
# Members behind a larger one are not looked at for a folder's name: a .tgz must be decompressed up to there.
LARGE = 64 << 20


class Member(NamedTuple):
    """An entry of an archive: its name, its size, and what writes it into a folder."""

    name: str
    size: int
    extract: Callable[[Path], Any]


def unpack_until(done: Callable[[], bool], root: Path, wanted: Sequence[str]) -> None:
    """Unpack what find_archive finds, each archive once, until `done()` or until there is no other. Raises DataError."""
    tried: list[Path] = []
    while not done() and (archive := find_archive(root, wanted, tried)):
        unpack(archive, root)
        tried.append(archive)


def find_archive(root: Path, wanted: Sequence[str], tried: Collection[Path] = ()) -> Path | None:
    """The archive in `root`, or else beside it, that begins with a folder in `wanted`; of several the first by name.

    Only its first members are looked at. Where no archive fits and one in `root` cannot be read, raises DataError: it may be
    half a download of the right one. One beside `root` that cannot be read is logged.

    tried: archives that are passed over.
    """
    damaged: list[Exception] = []
    for archive in (*_archives(root), *_archives(root.absolute().parent)):
        try:
            if archive not in tried and _begins_with(archive, wanted):
                return archive
        except (DataError, OSError) as error:
            if archive.parent == root:
                damaged.append(error)
            else:
                log.info("passed over: %s", error)
    if damaged:
        raise damaged[0]
    return None


def unpack(archive: Path, root: Path) -> None:
    """Write the folders and files of a .tar, .tgz or .zip into `root`, which is made; what is there already is kept.

    Raises DataError when the archive is damaged or encrypted, or a .tar holds a link, a device or a path that leads out of
    `root`, and when `root` cannot be written; ConfigError while another process unpacks it. Nothing of the archive is left
    there then.
    """
    # In root itself, so that moving from here to there is a renaming; a kill leaves it to the next call.
    temporary = root / f".unpacking-{archive.name}"
    try:
        with locked(temporary, "unpacks this archive"):
            try:
                files = temporary / "files"  # beside the lock
                shutil.rmtree(files, ignore_errors=True)
                files.mkdir()
                with _reading(archive) as (file, members), progress(archive.stat().st_size, archive.name, "B") as bar:
                    for member in members:
                        member.extract(files)
                        bar.update(file.tell() - bar.n)
                _merge(files, root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{root}: {archive} cannot be unpacked into it ({error.strerror or error}); make room and the right to write "
            f"there, or unpack it yourself elsewhere and set dataset.root to that folder"
        ) from None


def _merge(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        there = target / entry.name
        if entry.is_dir() and there.is_dir():
            _merge(entry, there)
        elif not (there.exists() or there.is_symlink()):
            entry.rename(there)


def _archives(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if ENDING.search(p.name) and p.is_file())
    except OSError:  # no such folder, or none that may be listed
        return []


def _begins_with(archive: Path, wanted: Sequence[str]) -> bool:
    with _reading(archive) as (_, members):
        for member in islice(members, FIRST_MEMBERS):
            if any(PurePosixPath(member.name).is_relative_to(folder) for folder in wanted):
                return True
            if member.size > LARGE:
                break
    return False


@contextmanager
def _reading(archive: Path) -> Iterator[tuple[BinaryIO, Iterator[Member]]]:
    """The open file and its members. An error of its content becomes a DataError; one of the system is of writing."""
    try:
        with archive.open("rb") as file:
            # Not by the file's name: a browser may decompress a .tgz on the way and keep the name.
            magic = file.read(4)
            file.seek(0)
            yield file, _zip_members(file) if magic.startswith(b"PK") else _tar_members(file, magic[:2] == b"\x1f\x8b")
    except Exception as error:  # bytes changed at random made the libraries raise ten different ones
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{archive}: cannot be unpacked ({reason}), so nothing was; half a download? get it again, or unpack it "
            f"yourself if you trust it, and set dataset.root to that folder"
        ) from None


def _tar_members(file: BinaryIO, compressed: bool) -> Iterator[Member]:
    if not hasattr(tarfile, "data_filter"):
        raise tarfile.ExtractError(f"Python {platform.python_version()} has no safe way; 3.10.12 and 3.11.4 have")
    stream: Any = gzip.GzipFile(fileobj=file) if compressed else file
    tar = tarfile.TarFile(fileobj=stream)
    for info in tar:
        if not (info.isreg() or info.isdir()):
            raise tarfile.ExtractError(f"member {info.name!r} is a link or a device")
        # Modes and times are not taken from the archive.
        yield Member(info.name, info.size, partial(tar.extract, info, set_attrs=False, filter="data"))
    if compressed:  # its checksum stands at the end, behind that of the tar
        while stream.read(1 << 20):
            pass
    else:  # tarfile takes a cut or damaged header for the end, which is a block of zeros
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end of the archive")


def _zip_members(file: BinaryIO) -> Iterator[Member]:
    archive = zipfile.ZipFile(file)
    for info in archive.infolist():
        # zipfile leaves out of a path what leads out of the folder, and writes a link as a file.
        yield Member(info.filename, info.file_size, partial(archive.extract, info))
