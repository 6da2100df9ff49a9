"""What a function is known by: what it computes, not how it is called or described."""

import ast
import dataclasses
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import lowbit as lb
from lowbit.run import identity
from lowbit.run.identity import fingerprint

BASE = '''
import functools
import math
import numpy as np
SCALE = 2.0
TABLE = np.array([1.0, 2.0])

def helper(x):
    """Helps."""
    return x * SCALE

class Net:
    """A network."""
    width = 3
    def __call__(self, x):
        """Calls."""
        return helper(x) + math.sqrt(self.width)

def fn(x, bias=1.0, *, gain=2.0):
    """Does it."""
    def inner(y):
        """Inside."""
        return [z + bias for z in y if z != "a"]
    return inner(helper(x)) + TABLE[0] * gain + Net()(x)
'''


def made(source: str, name: str = "fn"):
    module = types.ModuleType("somebodys")
    exec(compile(source, "somebodys.py", "exec"), module.__dict__)
    return getattr(module, name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Does it."""\n    def', "def"),
        ('"""Inside."""\n        return', "return"),
        ('"""Helps."""', '"""Helps a lot."""'),
        ('"""A network."""\n    width', "width"),
        ("return x * SCALE", "# why\n\n    return x * SCALE"),
        ("SCALE = 2.0", "OTHER = 3.0\nSCALE = 2.0"),
    ],
)
def test_words_change_nothing(old, new):
    assert old in BASE
    assert fingerprint(made(BASE.replace(old, new))) == fingerprint(made(BASE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "SCALE = 2.0000000000000004"),
        ("[1.0, 2.0]", "[1.0, 2.5]"),
        ("x * SCALE", "x / SCALE"),
        ("bias=1.0", "bias=1.5"),
        ("gain=2.0", "gain=2.5"),
        ("z + bias", "z - bias"),
        ('"a"', '"b"'),
        ("width = 3", "width = 4"),
        ("math.sqrt", "math.exp"),
        ("TABLE[0]", "TABLE[1]"),
        ("inner(helper(x))", "inner(x)"),
    ],
)
def test_what_is_computed_does(old, new):
    assert old in BASE
    assert fingerprint(made(BASE.replace(old, new))) != fingerprint(made(BASE))


def test_values_that_are_closed_over():
    def penalty(strength):
        return lambda w: strength * w

    assert fingerprint(penalty(0)) == fingerprint(penalty(0)) != fingerprint(penalty(1000))
    assert fingerprint(penalty(1)) != fingerprint(penalty(1.0))
    assert fingerprint(penalty(np.ones(3))) != fingerprint(penalty(np.ones(3, np.float32)))
    assert fingerprint(penalty(jax.random.key(0))) != fingerprint(penalty(jax.random.key(1)))
    assert fingerprint(jax.jit(penalty(2))) != fingerprint(jax.jit(penalty(3)))


class Own:
    """Somebody's object, whose text says nothing of what it holds."""

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return "Own()"


def test_objects_are_known_by_what_they_hold():
    def build(module):
        return lambda seed: module

    one, other = (nnx.Linear(2, 3, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    assert repr(one) == repr(other)
    assert fingerprint(build(one)) == fingerprint(build(one)) != fingerprint(build(other))
    assert fingerprint(build(Own(1))) == fingerprint(build(Own(1))) != fingerprint(build(Own(2)))


def test_functions_that_call_each_other_end():
    source = "def fn(x): return other(x)\ndef other(x): return fn(x) + {}"
    assert (
        fingerprint(made(source.format(1)))
        == fingerprint(made(source.format(1)))
        != fingerprint(made(source.format(2)))
    )


def test_values():
    @dataclasses.dataclass(frozen=True)
    class Named:
        name: str

    assert fingerprint(lb.lsq("w4,a4")) == fingerprint(lb.lsq("w4,a4")) != fingerprint(lb.lsq("w4/tensor,a4"))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})
    assert fingerprint(Named("a")) != fingerprint(Named("b"))
    assert fingerprint((1, 2)) != fingerprint((1, (2,)))
    assert fingerprint(0.0) != fingerprint(-0.0)


def test_lowbits_own_code_is_known_by_its_modules(tmp_path, monkeypatch):
    assert "lowbit.quantizers.lsq" in identity.modules_of({"**": lb.lsq("w4,a4")})
    assert identity.numerics() != identity.numerics(["lowbit.quantizers.lsq"])
    assert identity.numerics(folders=["solvers"]) != identity.numerics()
    file = tmp_path / "a.py"
    found = []
    for text in ('"""A."""\nx = 1\n', '"""B."""\n# b\nx  =  1\n', "x = 2\n"):
        file.write_text(text)
        identity._code_of.cache_clear()
        found.append(identity._code_of(file))
    assert found[0] == found[1] != found[2]


def test_what_every_method_goes_through_is_whole():
    """Their modules import no module of lowbit that no key knows."""
    root = Path(lb.__file__).parent
    known = {f"lowbit.{name}" for name in identity._ALWAYS}
    for path in (path for name in identity._ALWAYS for path in (root / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowbit."):
                assert ".".join(node.module.split(".")[:2]) in known or node.module == identity._ROUNDING, path
