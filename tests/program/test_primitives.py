"""Every primitive of jax means something here, and one thing only."""

from types import SimpleNamespace

import jax.extend.core.primitives
import jax.lax
import jax.lax.linalg
import pytest
from jax.extend import core as jex

from lowbit.program import compat, primitives


def _of_jax() -> set[str]:
    modules = (jax.lax, jax.lax.linalg, jax.extend.core.primitives)
    found = [getattr(module, name) for module in modules for name in dir(module)]
    return {value.name for value in found if isinstance(value, jex.Primitive)}


def test_every_primitive_of_jax_has_a_meaning():
    names = _of_jax()
    assert len(names) > 150, "jax lists its primitives elsewhere now"
    assert primitives.unknown(names) == []


def test_a_primitive_that_nobody_classified_is_unknown():
    new = jex.Primitive("a_primitive_of_next_year")
    assert primitives.unknown([new.name, "add"]) == [new.name]
    assert primitives.meaning(new.name) == primitives.UNKNOWN


def test_no_primitive_means_two_things():
    names = [name for group in primitives.MEANINGS.values() for name in group]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", sorted(primitives.READ_INTO))
def test_calls_are_read_into_by_one_rule(name):
    """What the reader looks into is what evaluation knows as a call."""
    assert compat.kind(SimpleNamespace(primitive=jex.Primitive(name), params={})) is not None
    assert primitives.meaning(name) in ("call", "control")


def test_what_is_no_call_is_not_looked_into():
    assert compat.kind(SimpleNamespace(primitive=jex.Primitive("custom_linear_solve"), params={})) is None
