"""What a function is known by: what it computes, not how it is called or described."""

import dataclasses
import types

import jax
import numpy as np
import pytest

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
