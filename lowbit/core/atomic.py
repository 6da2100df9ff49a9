"""Files and folders that are replaced whole: whoever looks, after a kill too, finds the old one or the new one.

What is new is written in a folder beside the target, ``.<name>.<random>.part``, flushed to the disk, and takes the target's
place in one step: a rename, or an exchange where a folder stands there already. The writer holds a lock on that folder as
long as it lives, so the next writer knows which of them were left by a kill, and removes those.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_OLD = "replaced"
"""In a part folder: what stood in the target's place, where a file system has no exchange."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def write_file(path: str | os.PathLike[str], content: bytes | str | Iterable[bytes]) -> None:
    """Writes a file whole or not at all; text in UTF-8.

    A symbolic link in its place is replaced by the file: what it points to is never written.

    Args:
        path: the file; its folder is made where there is none.
        content: text, bytes, or pieces of them.

    Raises:
        OSError: where it cannot be written; what was there is still there.
    """
    pieces = [content.encode()] if isinstance(content, str) else [content] if isinstance(content, bytes) else content
    with replacing(path) as part, part.open("xb") as stream:
        stream.writelines(pieces)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path, of the target's name in a folder of its own, where the block writes a file that then replaces ``path``.

    Where the block raises, ``path`` stays as it was.
    """
    target = Path(path)
    if target.is_dir() and not target.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "is a folder, where a file is to be written", str(target))
    with _beside(target) as part:
        part_file = part / target.name
        yield part_file
        _flush(part_file)
        os.replace(part_file, target)
        _flush(target.parent)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty folder, beside the target, that the block fills and that then replaces ``path``, a folder or nothing.

    Where the block raises, ``path`` stays as it was.
    """
    target = Path(path)
    with _beside(target) as part:
        part_folder = part / target.name
        part_folder.mkdir()
        yield part_folder
        for folder, _, files in os.walk(part_folder):
            for name in files:
                _flush(Path(folder, name))
            _flush(Path(folder))
        if not os.path.lexists(target):
            os.rename(part_folder, target)
        elif not _exchanged(part_folder, target):
            # A kill between these two leaves no target: `settle`, which readers and writers call, puts the old one back.
            os.rename(target, part / _OLD)
            os.rename(part_folder, target)
        _flush(target.parent)


def emptied(path: str | os.PathLike[str]) -> Path:
    """Makes a folder empty in one step, a new one where there is none, and returns it."""
    target = Path(path)
    with replacing_folder(target):
        pass
    return target


def settle(path: str | os.PathLike[str]) -> None:
    """Removes what killed writers of ``path`` left beside it; a folder that one of them had moved away is put back."""
    target = Path(path)
    try:
        with os.scandir(target.parent) as entries:
            names = [entry.name for entry in entries if _is_part(entry.name, target.name)]
    except OSError:
        return  # the folder is not there, or cannot be listed: the writer will say so
    for part in (target.parent / name for name in names):
        with contextlib.suppress(OSError), _locked(part) as is_ours:
            if is_ours:
                if os.path.lexists(part / _OLD) and not os.path.lexists(target):
                    os.rename(part / _OLD, target)
                _remove(part)


def _is_part(name: str, target: str) -> bool:
    return name.startswith(f".{target}.") and name.endswith(".part")


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Gives a new folder beside the target, ours as long as the block runs, and removed after it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    settle(target)
    while True:
        part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
        part.mkdir(mode=0o700)
        with _locked(part) as is_ours:
            if not is_ours:  # another writer took it for a stale one, in the moment between the two lines above
                continue
            try:
                yield part
            finally:
                _remove(part)
            return


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[bool]:
    """Gives whether nobody else holds a part, which is ours then until the end of the block; the lock of a killed process is gone."""
    try:
        handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Without locks, a file system's parts are never known to be stale; ours we know anyway.
            yield error.errno not in (errno.EWOULDBLOCK, errno.EACCES) and not any(os.scandir(part))
            return
        try:
            is_there = os.path.samestat(os.fstat(handle), os.lstat(part))
        except FileNotFoundError:
            is_there = False
        yield is_there
    finally:
        os.close(handle)


def _remove(part: Path) -> None:
    if stat.S_ISDIR(os.lstat(part).st_mode):
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; returns False where the system or the file system cannot."""
    call: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), str(other))
