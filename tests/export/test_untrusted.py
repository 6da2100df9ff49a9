"""Bundles from anyone: what is opened, what is compiled, what is run, and what a changed manifest is worth."""

import copy
import hashlib
import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import lowbit as lb
from lowbit import cli
from lowbit.export import child, inside, manifest, process, reading, stablehlo, verify
from lowbit.export.process import Limits
from lowbit.export.reading import ARTIFACT

from . import cases
from .cases import signed

FUZZ = int(os.environ.get("LOWBIT_FUZZ_FILES", "1"))


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(cases.mlp("w4,a8").bundle.path, tmp_path / "b"))


def test_a_signed_copy_is_what_it_was(folder):
    assert verify.verify(signed(folder), ["xla"]).rows[0].status == "exact"


# ---- what is opened

NAMES = ["../b/model.mlirbc", "/etc/passwd", "../../../../etc/passwd", "form/../model.mlirbc", "./model.mlirbc", "",
         "form//x", "..", "a\\b", "x\0", ".", "form/"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(folder, name):
    data = (folder / ARTIFACT).read_bytes()

    def change(said):
        said["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    with pytest.raises(ValueError, match="named relative to its folder"):
        reading.read_bundle(signed(folder, change))


def _link(path: Path):
    path.rename(path.parent.parent / "moved")
    path.symlink_to("../moved")


def _hang(path: Path):
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path):
    path.unlink()
    path.mkdir()


def _far_link(path: Path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", [_link, _hang, _folder, _far_link])
@pytest.mark.parametrize("name", [ARTIFACT, "vectors.safetensors", "manifest.json"])
def test_only_regular_files_are_opened(folder, kind, name):
    kind(folder / name)
    with pytest.raises(ValueError, match="no regular file"):
        reading.read_bundle(folder)


def test_a_folder_on_the_way_may_not_be_a_link(folder, tmp_path):
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "x").write_bytes(b"x")
    (folder / "form").symlink_to(tmp_path / "else")
    with pytest.raises(ValueError, match="a link on the way"):
        reading.read_bundle(signed(folder, files=["form/x"]))


def test_what_is_not_listed_is_not_opened(folder):
    (folder / "c").mkdir()
    (folder / "c" / "model.c").write_text("int x;")
    os.mkfifo(folder / "model.vmfb")
    bundle = reading.read_bundle(folder)
    with pytest.raises(ValueError, match="not among the files that the bundle lists"):
        bundle.file("c/model.c")


def test_a_file_changed_after_it_was_checked(folder):
    bundle = reading.read_bundle(folder)
    data = bytearray((folder / ARTIFACT).read_bytes())
    data[-1] ^= 1
    (folder / ARTIFACT).write_bytes(data)
    with pytest.raises(ValueError, match="altered"):
        _ = bundle.artifact
    (folder / ARTIFACT).write_bytes(data * 2)
    with pytest.raises(ValueError, match="were expected"):
        _ = bundle.artifact


def test_a_certificate_goes_through_no_link(folder, tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "certificate.json").symlink_to(victim)
    (folder / "certificate.part").symlink_to(victim)
    assert cli.main(["verify", str(folder), "--target", "xla", "--json"]) == 0
    assert "exact" in capsys.readouterr().out
    assert victim.read_text() == "precious"
    assert json.loads((folder / "certificate.json").read_text())["passed"] is True
    assert not (folder / "certificate.json").is_symlink()


# ---- what is compiled and run


def _module(body: str) -> str:
    return f"module @m {{\n func.func public @main(%x: tensor<4x64xf32>) -> tensor<4x10xf32> {{\n{body}\n }}\n}}"


CALL = (
    _module(
        """ %y = stablehlo.custom_call @{name}(%x) {{api_version = 2 : i32}} : (tensor<4x64xf32>) -> tensor<4x10xf32>
  return %y : tensor<4x10xf32>"""
    )
    .replace("{{api", "{api")
    .replace("i32}}", "i32}")
)
WHILE = _module(
    """ %c = stablehlo.constant dense<1> : tensor<i32>
  %m = stablehlo.constant dense<0> : tensor<i32>
  %r = stablehlo.while(%i = %c) : tensor<i32> cond {
    %t = stablehlo.compare GE, %i, %m : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %t : tensor<i1>
  } do {
    %n = stablehlo.xor %i, %c : tensor<i32>
    stablehlo.return %n : tensor<i32>
  }
  %f = stablehlo.convert %r : (tensor<i32>) -> tensor<f32>
  %y = stablehlo.broadcast_in_dim %f, dims = [] : (tensor<f32>) -> tensor<4x10xf32>
  return %y : tensor<4x10xf32>"""
)


def planted(folder: Path, text: str) -> Path:
    """The bundle with another program, everything signed."""
    said = json.loads((folder / "manifest.json").read_text())
    (folder / ARTIFACT).write_bytes(stablehlo.artifact(text, "1.9.0", mark=manifest.scales_mark(said)))
    return signed(folder, files=[ARTIFACT])


@pytest.mark.parametrize("name", ["xla_python_cpu_callback", "lapack_sgeqrf_ffi", "no_such_call", "lowbit_matmul"])
def test_custom_calls_are_refused_before_anything_compiles(folder, monkeypatch, name):
    bundle = reading.read_bundle(planted(folder, CALL.replace("{name}", name)))
    for target in verify.lookup(["xla", "interpreter", "iree"]):
        ran = []
        monkeypatch.setattr(child, "runners", lambda name=target.name, ran=ran: {name: lambda *_: ran.append(1)})
        found, _ = child.answer(bundle, target, is_asked=True)
        assert found["status"] == "failed"
        assert f"calls {name}, which lowbit does not write: not compiled" in found["detail"]
        assert ran == []


def test_a_program_of_somebody_else_is_said_to_differ_and_takes_no_more_than_it_may(folder):
    (row,) = verify.verify(planted(folder, CALL.replace("{name}", "no_such_call")), ["xla"]).rows
    assert (row.status, row.is_failure) == ("failed", True)
    start = time.monotonic()
    (row,) = verify.verify(planted(folder, WHILE), ["xla"], limits=Limits(wall_seconds=2)).rows
    assert row.status == "failed"
    assert "stopped after 2 seconds" in row.detail
    (row,) = verify.verify(folder, ["xla"], limits=Limits(cpu_seconds=1)).rows
    assert "stopped after 1 seconds of CPU time" in row.detail
    assert time.monotonic() - start < 60
    cut = (folder / ARTIFACT).read_bytes()[:500] + manifest.scales_mark(
        json.loads((folder / "manifest.json").read_text())
    )
    (folder / ARTIFACT).write_bytes(cut)
    (row,) = verify.verify(signed(folder, files=[ARTIFACT]), ["xla"]).rows
    assert row.status == "failed"


def test_a_run_that_fills_the_memory_is_stopped(folder):
    (row,) = verify.verify(folder, ["xla"], limits=Limits(memory_bytes=1 << 20)).rows
    assert row.status == "failed"
    assert "more than 0.00105 GB of memory" in row.detail
    assert verify.verify(folder, ["xla"]).rows[0].status == "exact"  # the next run starts anew
    for odd in ({"wall_seconds": 0}, {"memory_bytes": -1}, {"cpu_seconds": "1"}):
        with pytest.raises(ValueError, match=next(iter(odd))):
            Limits(**odd)


def test_a_crash_is_a_finding(folder, monkeypatch):
    helper = process._helper()
    assert verify.verify(folder, ["xla"]).rows[0].status == "exact"
    assert helper.process is not None
    died = helper.process
    died.kill()  # the helper died between two runs
    died.wait()
    assert verify.verify(folder, ["xla"]).rows[0].status == "exact"

    assert died.stdin.closed
    assert died.stdout.closed

    def crashes(session):
        process._kill(session)
        return 0.0, 0

    monkeypatch.setattr(process, "_usage", crashes)
    (row,) = verify.verify(folder, ["xla"]).rows
    assert (row.status, row.detail) == ("failed", "its process ended by SIGKILL")


EVIL = """
#include <stdio.h>
__attribute__((constructor)) static void evil(void) { FILE *f = fopen("{mark}", "w"); if (f) fclose(f); }
"""


@pytest.fixture(scope="module")
def c_bundle(tmp_path_factory):
    params, args = (
        {"a": cases.normal(0, 8, 6), "b": cases.normal(1, 6, 4), "c": cases.normal(2, 6)},
        (cases.normal(3, 5, 8),),
    )
    plan = lb.bind(cases.two_layers, {"**": "w8,a8"}, params, *args, integer=True)
    qparams = lb.pack(plan, params, lb.init(cases.two_layers, plan, params, *args))
    path = tmp_path_factory.mktemp("c") / "m"
    return lb.export(cases.two_layers, plan, qparams, args, path, integer_io=True, targets=["xla", "c"])


def test_code_of_a_bundle_runs_only_when_asked(c_bundle, tmp_path, capsys):
    folder, mark = Path(shutil.copytree(c_bundle.path, tmp_path / "b")), tmp_path / "it_ran"
    source = folder / "c" / "model.c"
    source.write_text(source.read_text() + EVIL.replace("{mark}", str(mark)))
    signed(folder, files=["c/model.c"])
    assert cli.main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "not run" in out
    assert "--run-code" in out
    assert cli.main(["verify", str(folder), "--target", "c"]) == 1  # nothing was compared
    assert not mark.exists()
    assert cli.main(["verify", str(folder), "--target", "c", "--run-code"]) == 0
    assert mark.exists()
    assert "exact" in capsys.readouterr().out


# ---- what a changed manifest is worth


def test_every_flip_of_the_manifest_is_caught_or_changes_nothing(folder):
    path = folder / "manifest.json"
    content, before = path.read_bytes(), reading.read_bundle(folder).manifest
    draw, said = random.Random(0), []
    count = 300 * FUZZ
    for _ in range(count):
        flipped = bytearray(content)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            after = reading.read_bundle(folder).manifest
        except ValueError as error:
            said.append(str(error))
        else:
            assert after == before
    assert len(said) == count  # white space counts too
    assert all(str(folder) in text for text in said)


def _scaled(entry):
    for key, value in entry.items():
        if key == "scale" and isinstance(value, float):
            entry[key] = 4 * value
        elif key == "scale" and isinstance(value, list):
            entry[key] = [4 * x for x in value]
    return entry


def test_scales_of_the_manifest_are_those_of_the_artifact(c_bundle, tmp_path):
    """Also where the digest is computed anew: the artifact says which scales it was exported with."""
    folder = Path(shutil.copytree(c_bundle.path, tmp_path / "b"))
    for where in ("inputs", "outputs", "sites", "grids"):
        entries = c_bundle.manifest[where]
        for key in range(len(entries)) if isinstance(entries, list) else entries:
            said = copy.deepcopy(c_bundle.manifest)
            _scaled(said[where][key])
            assert said != c_bundle.manifest
            (folder / "manifest.json").write_bytes(manifest.encoded(said)[1])
            with pytest.raises(ValueError, match=r"scales of manifest\.json are not those"):
                reading.read_bundle(folder)
    (folder / "manifest.json").write_bytes(manifest.encoded(c_bundle.manifest)[1])
    assert reading.read_bundle(folder).manifest == c_bundle.manifest


def _places(value, at=()):
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*at, key))


ODD = [None, True, -1, 0, 1 << 70, 1.5, "", "..", [], {}, [[]], "x" * 99, ["y"], {"a": 1}]


def test_a_signed_manifest_of_nonsense_is_refused_or_fails(folder):
    """Whatever stands anywhere: ValueError, or a certificate; never another exception, and never a file outside."""
    before = json.loads((folder / "manifest.json").read_text())
    draw, refused, accepted = random.Random(1), [], 0
    places = [at for at in _places(before) if at and at[0] != "digest"]
    for _ in range(300 * FUZZ):
        said = copy.deepcopy(before)
        at, odd = draw.choice(places), draw.choice(ODD)
        inner = said
        for key in at[:-1]:
            inner = inner[key]
        if draw.random() < 0.2 and isinstance(inner, dict):
            del inner[at[-1]]
        else:
            inner[at[-1]] = odd
        (folder / "manifest.json").write_bytes(manifest.encoded(said)[1])
        try:
            bundle = reading.read_bundle(folder)
            bundle.cases()
            zeros = [np.zeros(e["shape"], e["dtype"]) for e in bundle.manifest["outputs"]]
            verify.compared(bundle.manifest, zeros, zeros)
            accepted += 1
        except ValueError as error:
            refused.append(str(error))
    assert all(str(folder) in text for text in refused)
    assert min(accepted, len(refused)) > 0


@pytest.mark.parametrize(
    "content", [b"", b"[", b"[" * 100_000, b"{}", b"null", b"\xff\xfe", b'{"format": "lowbit-bundle"}']
)
def test_what_is_no_manifest(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match="is not a bundle"):
        reading.read_bundle(folder)


def test_what_no_machine_holds_is_not_read(folder, monkeypatch):
    """A file with holes takes no room on the disk, and its checksum may be right."""
    size = max(entry["bytes"] for entry in reading.read_bundle(folder).manifest["files"].values())
    monkeypatch.setattr(reading, "_MOST_BYTES", size - 1)
    with pytest.raises(
        ValueError, match=rf"has {size:,} bytes, more than the {size - 1:,} that are read on this machine"
    ):
        reading.read_bundle(folder)


def test_a_terminal_obeys_no_bundle(folder, capsys):
    planted(folder, CALL.replace("{name}", '"\\1B[2J\\07no_such_call"'))
    assert cli.main(["verify", str(folder), "--target", "xla"]) == 1
    out = capsys.readouterr().out
    assert r"calls \x1b[2J\x07no_such_call" in out
    assert "\x1b" not in out


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="were expected"):
        inside.read_file(tmp_path, "x", 1 << 20)
