"""Files and folders replaced whole: a writer is stopped at every step it takes, and really killed at random moments."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowbit.core import atomic

STEPS = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "scandir")
FILES = {"model": b"x" * 1000, "form/model": b"y" * 10}


class Stopped(BaseException):
    """What a kill looks like from inside: nothing runs after it."""


@contextlib.contextmanager
def stopped_at(monkeypatch, step: int, names: tuple[str, ...] = STEPS):
    """Every function of the file system raises from its ``step``-th call on: no handler can clean up, as after a kill."""
    left = [step]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(os, name, counted(getattr(os, name)))
        patch.setattr(atomic, "_exchanged", counted(atomic._exchanged))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        yield left


def write_file(path: Path, mark: bytes) -> None:
    atomic.write_file(path, [mark, b"-" * 100, mark])


def read_file(path: Path) -> bytes:
    content = path.read_bytes()
    assert len(content) == 102
    assert content[:1] == content[-1:]
    return content[:1]


def write_folder(path: Path, mark: bytes) -> None:
    with atomic.replacing_folder(path) as folder:
        (folder / "form").mkdir()
        for name, content in FILES.items():
            (folder / name).write_bytes(mark + content)


def read_folder(path: Path) -> bytes:
    atomic.settle(path)
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert {name: content[1:] for name, content in found.items()} == FILES
    (mark,) = {content[:1] for content in found.values()}
    return mark


@pytest.mark.parametrize(
    ("writes", "reads", "can_exchange"),
    [(write_file, read_file, True), (write_folder, read_folder, True), (write_folder, read_folder, False)],
)
@pytest.mark.parametrize("has_old", [True, False])
def test_a_stop_at_any_step_leaves_the_old_or_the_new(tmp_path, monkeypatch, writes, reads, can_exchange, has_old):
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    seen = set()
    for step in range(200):
        path = tmp_path / str(step) / "model.v1"
        if has_old:
            writes(path, b"o")
        with stopped_at(monkeypatch, step) as left:
            try:
                writes(path, b"n")
            except Stopped:
                done = False
            else:
                done = left[0] >= 0
        if has_old or path.exists():
            seen.add(reads(path))
        writes(path, b"2")  # nothing is blocked, and nothing is left
        assert reads(path) == b"2"
        assert os.listdir(path.parent) == ["model.v1"]
        if done:
            break
    else:
        raise AssertionError("the writer never ended")
    assert step > 8
    assert seen == ({b"o", b"n"} if has_old else {b"n"})


WRITER = """
import sys
from pathlib import Path
from tests.core.test_atomic import write_file, write_folder
print("ready", flush=True)
for i in range(10**6):
    mark = b"on"[i % 2 :][:1]
    write_file(Path(sys.argv[1], "file"), mark)
    write_folder(Path(sys.argv[1], "folder"), mark)
"""


def test_killed_writers(tmp_path):
    """Real kills, at random moments, of a process that does nothing but replace."""
    write_file(tmp_path / "file", b"o")
    write_folder(tmp_path / "folder", b"o")
    draw = random.Random(0)
    count = int(os.environ.get("LOWBIT_FUZZ_FILES", "1")) * 4
    for _ in range(count):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(draw.uniform(0.0, 0.05))
            writer.send_signal(signal.SIGKILL)
        read_file(tmp_path / "file")
        read_folder(tmp_path / "folder")
    write_file(tmp_path / "file", b"o")
    write_folder(tmp_path / "folder", b"o")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_writer_that_lives_keeps_its_part(tmp_path):
    path = tmp_path / "m"
    with atomic.replacing(path) as part:
        atomic.write_file(path, "other")
        part.write_text("mine")
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["m"]


def test_a_planted_link_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    atomic.write_file(tmp_path / "link", "new")
    assert (victim.read_text(), (tmp_path / "link").read_text()) == ("precious", "new")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    (tmp_path / "folder").symlink_to(outside)
    (tmp_path / ".folder.0.part").symlink_to(outside)  # neither is a link in the place of a part
    write_folder(tmp_path / "folder", b"n")
    assert read_folder(tmp_path / "folder") == b"n"
    assert (outside / "file").read_text() == "precious"


def test_a_folder_is_no_place_for_a_file(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.write_file(tmp_path / "f", "x")
    assert os.listdir(tmp_path) == ["f"]


def test_what_an_error_leaves(tmp_path):
    atomic.write_file(tmp_path / "m", "old")

    def half():
        with atomic.replacing(tmp_path / "m") as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert (tmp_path / "m").read_text() == "old"
    assert os.listdir(tmp_path) == ["m"]
    write_folder(tmp_path / "f", b"o")
    assert os.listdir(atomic.emptied(tmp_path / "f")) == []
