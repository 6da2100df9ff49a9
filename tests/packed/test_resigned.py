"""Checkpoints whose header was changed and signed anew: ValueError that names the file, or the model that was saved."""

import copy
import functools
import hashlib
import json
import os
import random

import numpy as np
import pytest

import lowbit as lb
from lowbit import cli
from lowbit.packed import files

from .test_files import RULES, packed, same

FUZZ = int(os.environ.get("LOWBIT_FUZZ_FILES", "1"))
ODD = [None, True, False, -1, 0, 1, 2, 3, 7, 1 << 40, 1 << 70, -(1 << 70), 1.5, "", "x", "int8/tensor/sym", "float32", "int4",
       "F32", "I32", [], {}, [[]], ["x"], [-1, 3], {"dict": []}, {"a": 1}]  # fmt: skip


@functools.cache
def model(name: str):
    return packed(RULES[name])


def parts(content: bytes):
    """Header, card, plan and data of a file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"]["lowbit"])
    return header, card, json.loads(card["plan"]), content[8 + length :]


def joined(header, card, plan, data, *, is_described: bool) -> bytes:
    """A file of them, every checksum right: also that of the description, where asked."""
    card = card | {
        "plan": json.dumps(plan, separators=(",", ":")) if not isinstance(plan, str) else plan,
        "sha256": "0" * 64,
    }
    if is_described:
        shapes = {
            k: [v.get("shape"), v.get("dtype")]
            for k, v in header.items()
            if k != "__metadata__" and isinstance(v, dict)
        }
        card["described"] = files._described({"plan": None, "tree": None} | card, shapes)
    header = header | {"__metadata__": {"lowbit": json.dumps(card, separators=(",", ":"))}}
    text = json.dumps(header, separators=(",", ":")).encode()
    content = len(text).to_bytes(8, "little") + text + data
    return content.replace(files._mark("0" * 64), files._mark(hashlib.sha256(content).hexdigest()))


def places(value, at=()):
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def changed(value, draw):
    """A copy with one thing changed: a value replaced, taken away, swapped with a neighbour, or nested."""
    at = draw.choice([at for at in places(value) if at and at[-1] not in ("sha256", "described", "__metadata__")])
    value = copy.deepcopy(value)
    inner = functools.reduce(lambda x, key: x[key], at[:-1], value)
    old, kind = inner[at[-1]], draw.randrange(6)
    if kind == 0:
        del inner[at[-1]]
    elif kind == 1 and isinstance(inner, list):
        draw.shuffle(inner)
    elif kind == 2:
        for _ in range(draw.choice([1, 3, 300])):
            old = [old] if draw.random() < 0.5 else {"list": [old]}
        inner[at[-1]] = old
    elif kind == 3 and isinstance(old, int):
        inner[at[-1]] = old + draw.choice([-1, 1, 2])
    else:
        inner[at[-1]] = draw.choice(ODD)
    return value


@pytest.mark.parametrize("name", RULES if FUZZ > 1 else ["groups"])
@pytest.mark.parametrize("is_described", [False, True])
def test_a_header_of_nonsense(tmp_path, name, is_described):
    """With the description signed too, what is loaded may be another model; it is one that says what it is, all the same."""
    fn, plan, qparams, args = model(name)
    path = tmp_path / "m"
    lb.save(path, plan, qparams)
    found = parts(path.read_bytes())
    path.write_bytes(joined(*found, is_described=is_described))
    assert same(lb.load(path)[1], qparams)
    want = np.asarray(lb.execute(fn, plan)(qparams, *args)) if FUZZ > 1 and not is_described else None
    draw, refused, accepted = random.Random(name), [], 0
    for _ in range(60 * FUZZ):
        which, pieces = draw.randrange(3), list(found)
        pieces[which] = changed(pieces[which], draw)
        path.write_bytes(joined(*pieces, is_described=is_described))
        try:
            read_plan, read = lb.load(path)
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        assert str(read_plan)
        assert [q.bits_per_element for q in read.weights().values()]
        assert all(q.dequantize().shape == q.shape for q in read.weights().values())
        if not is_described:
            assert same(read, qparams)
            assert [[s.spec for s in row.sites] for row in read_plan] == [[s.spec for s in row.sites] for row in plan]
            if want is not None:
                np.testing.assert_array_equal(lb.execute(fn, read_plan)(read, *args), want)
    assert all(str(path) in text for text in refused)
    assert len(refused) > accepted


def test_depth_is_bounded(tmp_path, capsys):
    _, plan, qparams, _ = model("integers")
    path = tmp_path / "m"
    lb.save(path, plan, qparams)
    header, card, text_of_plan, data = parts(path.read_bytes())
    for depth in (150, 250, 900, 20_000):
        text = '{"list":[' * depth + "null" + "]}" * depth
        card = card | {"tree": {"params": "DEEP", "sites": {"dict": []}}}
        card.pop("described", None)
        whole = json.dumps(
            card | {"plan": json.dumps(text_of_plan), "sha256": "0" * 64}, separators=(",", ":")
        ).replace('"DEEP"', text)
        head = json.dumps(header | {"__metadata__": {"lowbit": whole}}, separators=(",", ":")).encode()
        content = len(head).to_bytes(8, "little") + head + data
        path.write_bytes(content.replace(files._mark("0" * 64), files._mark(hashlib.sha256(content).hexdigest())))
        assert cli.main(["show", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert ("are not its plan's" in said) == (depth == 150)  # it was read, and is no model's


FIELDS = {
    "spec": "int8/channel/sym", "dtype": "int32", "groups": [[-1, 4]], "stage": "codes", "packed_axis": [-1, 36], "scale": "params/mid/bias",
    "codes": "params/head/kernel/codes", "zero": "params/mid/bias",
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_each_static_field_is_checked_against_the_arrays(tmp_path, field):
    """Everything is signed, description too: the arrays themselves contradict."""
    _, plan, qparams, _ = model("integers")
    path = tmp_path / "m"
    lb.save(path, plan, qparams)
    header, card, said, data = parts(path.read_bytes())
    tree = dict(dict(card["tree"]["params"]["dict"])["mid"]["dict"])["kernel"]["qtensor"]
    assert tree[field] != FIELDS[field]
    tree[field] = FIELDS[field]
    path.write_bytes(joined(header, card, said, data, is_described=True))
    with pytest.raises(ValueError, match=f"{path} is not a valid lowbit checkpoint"):
        lb.load(path)


@pytest.mark.parametrize("fingerprint", ["0" * 16, None, 1, ["x"]])
def test_a_fingerprint_is_that_of_the_plan_beside_it(tmp_path, fingerprint):
    _, plan, qparams, _ = model("integers")
    path = tmp_path / "m"
    lb.save(path, plan, qparams)
    header, card, said, data = parts(path.read_bytes())
    assert card["fingerprint"] == plan.fingerprint
    card["fingerprint"] = fingerprint
    path.write_bytes(joined(header, card, said, data, is_described=True))
    with pytest.raises(ValueError, match=f"{path} is not a valid lowbit checkpoint: its fingerprint"):
        lb.load(path)


@pytest.mark.parametrize("left", [{}, {"fingerprint": ""}])
def test_a_fingerprint_is_not_lost(tmp_path, left):
    """Without it a model is compared weight by weight only; parameters that never had one may be saved so."""
    _, plan, qparams, _ = model("integers")
    path = tmp_path / "m"
    lb.save(path, plan, qparams)
    header, card, said, data = parts(path.read_bytes())
    card.pop("fingerprint")
    path.write_bytes(joined(header, card | left, said, data, is_described=False))
    with pytest.raises(ValueError, match=f"{path} is not a valid .* lost its plan's fingerprint, '{plan.fingerprint}'"):
        lb.load(path)
    bare = lb.QParams(qparams.params, qparams.sites)
    lb.save(path, plan, bare)
    assert same(lb.load(path)[1], bare)


def test_a_terminal_obeys_no_checkpoint(tmp_path, capsys):
    """A rule is shown as it is written, and anything may stand there."""
    _, plan, qparams, _ = model(next(iter(RULES)))
    lb.save(tmp_path / "m", plan, qparams)
    header, card, text, data = parts((tmp_path / "m").read_bytes())
    text["rows"][0]["rule"] += "\x1b[2J\nint2 of 8 weights"
    (tmp_path / "m").write_bytes(joined(header, card, text, data, is_described=True))
    assert cli.main(["show", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[2J" in out
    assert "\nint2 of 8 weights" not in out


@pytest.mark.parametrize("left", [{"dict": []}, None, {"list": []}])
def test_what_a_plan_quantizes_is_there(tmp_path, left):
    """Weights that are not there disagree with nothing; a model without them is not the plan's all the same."""
    _, plan, qparams, _ = model("integers")
    path = tmp_path / "m"
    lb.save(path, plan, qparams)
    header, card, said, data = parts(path.read_bytes())
    card["tree"]["params"] = left
    path.write_bytes(joined(header, card, said, data, is_described=True))
    with pytest.raises(ValueError, match=f"{path} is not a valid lowbit checkpoint: its parameters are not its plan's"):
        lb.load(path)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    _, plan, qparams, _ = model("integers")
    path = tmp_path / "m"
    lb.save(path, plan, qparams)
    header, card, said, data = parts(path.read_bytes())
    text = json.dumps(said, separators=(",", ":")).replace('{"version":1', '{"version":1,"version":1')
    path.write_bytes(joined(header, card, text, data, is_described=True))
    with pytest.raises(ValueError, match=f"{path} is not a valid .*'version' stands twice"):
        lb.load(path)
