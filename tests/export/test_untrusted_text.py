"""Manifests whose text says something twice, or names that a terminal obeys; certificates that are other files."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from lowbit import cli
from lowbit.export import manifest, reading
from lowbit.export.reading import ARTIFACT

from . import cases
from .cases import signed


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(cases.mlp("w4,a8").bundle.path, tmp_path / "b"))


@pytest.mark.parametrize("name", ["a\nb", "\ud800", "a\x1b[2J"])
def test_names_are_printable(folder, name):
    data = (folder / ARTIFACT).read_bytes()

    def change(said):
        said["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    with pytest.raises(ValueError, match=f"{folder} is not a bundle .* printable"):
        reading.read_bundle(signed(folder, change))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"name": "lowbit"', '"name": "other",\n "name": "lowbit"', "'name' stands twice"),
        ('"vectors": ', '"vectors": 1, "vectors": ', "'vectors' stands twice"),
        ('"vectors": ', '"vectors": NaN, "v": ', "NaN is no number"),
        ('"vectors": ', '"vectors": -Infinity, "v": ', "-Infinity is no number"),
        ('"tools": {', f'"tools": {{"deep": {"[" * 5000}{"]" * 5000},', "too deep"),
        ('"version": 2', f'"version": {"9" * 5000}', "is not lowbit's"),
        ('"version": 2', '"version": 2.0', "is not lowbit's"),
        ('"version": 2', '"version": 3', "of version 3; this lowbit reads 2"),
        ("{", "\ufeff{", "is not lowbit's"),
    ],
)
def test_a_manifest_is_read_once_and_strictly(folder, old, new, message):
    """Everything is signed: of a key that stands twice, another reader takes the other."""
    zeros = "0" * 64
    said = json.loads((folder / "manifest.json").read_text()) | {"digest": zeros}
    content = json.dumps(said, indent=1).replace(old, new, 1).encode()
    digest = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_bytes(content.replace(manifest._line(zeros), manifest._line(digest)))
    with pytest.raises(ValueError, match=f"{folder} is not a bundle .*{message}"):
        reading.read_bundle(folder)


def test_a_certificate_is_no_second_name_of_another_file(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, folder / "certificate.json")
    assert cli.main(["verify", str(folder), "--target", "xla", "--json"]) == 0
    assert victim.read_text() == "precious"
    (folder / "certificate.json").unlink()
    (folder / "certificate.json").mkdir()
    (folder / "certificate.json" / "x").write_text("precious")
    assert cli.main(["verify", str(folder), "--target", "xla", "--json"]) == 2
    assert (folder / "certificate.json" / "x").read_text() == "precious"
