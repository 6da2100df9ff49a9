"""A plan is data: it is packed by its program, read back from text, given other quantizers, bound again."""

import ast
import copy
import dataclasses
import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.plan.serial import from_json, to_json
from tests.values import normal

PARAMS = {"a": normal(0, 8, 8), "g": 1 + 0.1 * normal(1, 8), "b": normal(2, 8, 4)}
X = normal(3, 3, 8)
RULES = {"**": "w8,a8"}


def _fn(p, x):
    return jax.nn.relu(x @ (p["a"] * p["g"])) @ p["b"]


def _integer(p, x):
    return jax.nn.relu(x @ p["a"] + p["g"]) @ p["b"]


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("fn", "integer"), [(_fn, False), (_integer, True)])
def test_a_plan_from_text_packs_with_its_quantizers_and_its_function(fn, integer):
    plan = lb.bind(fn, RULES, PARAMS, X, integer=integer)
    qstate = lb.init(fn, plan, PARAMS, X)
    qparams, text = lb.pack(plan, PARAMS, qstate), to_json(plan)
    served = from_json(text)
    assert to_json(served) == text
    np.testing.assert_array_equal(lb.execute(fn, served)(qparams, X), lb.execute(fn, plan)(qparams, X))
    with pytest.raises(ValueError, match="bind again"):
        lb.pack(served, PARAMS, qstate, fn=fn, args=(X,))
    back = from_json(text, quantizers=[lb.rtn("w8,a8")])
    assert back == plan
    assert to_json(back) == text
    with pytest.raises(ValueError, match=r"pass fn=, args="):
        lb.pack(back, PARAMS, qstate)
    with pytest.raises(ValueError, match="operations are not those"):
        lb.pack(back, PARAMS, qstate, fn=lambda p, x: x @ p["a"], args=(X,))
    _same(lb.pack(back, PARAMS, qstate, fn=fn, args=(X,)), qparams)
    np.testing.assert_array_equal(lb.simulate(fn, back)(PARAMS, qstate, X), lb.simulate(fn, plan)(PARAMS, qstate, X))
    with pytest.raises(ValueError, match=r"no site of this plan has the quantizer.*lsq"):
        from_json(text, quantizers=[lb.lsq("w8,a8")])


def test_a_plan_carries_its_program_and_is_compared_without():
    plan, again = (lb.bind(_fn, RULES, PARAMS, X) for _ in range(2))
    assert plan.program is not again.program
    assert (plan, hash(plan)) == (again, hash(again))
    assert plan.program.leaves == []
    assert not any(callable(getattr(plan, f.name)) for f in dataclasses.fields(plan))


@pytest.mark.parametrize(("fn", "integer"), [(_fn, False), (_integer, True)])
def test_other_quantizers_are_what_a_bind_with_their_rules_gives(fn, integer):
    plan = lb.bind(fn, RULES, PARAMS, X, integer=integer)
    found = lb.with_quantizers(plan, lambda row: "w4,a8" if row.path == "b" else None)
    wanted = lb.bind(fn, {"b": "w4,a8", **RULES}, PARAMS, X, integer=integer)
    assert found == wanted
    assert str(found) == str(wanted)
    qstate = lb.init(fn, found, PARAMS, X)
    _same(lb.pack(found, PARAMS, qstate), lb.pack(wanted, PARAMS, qstate))
    assert lb.with_quantizers(plan, lambda row: None) == plan


def test_other_quantizers_are_checked_as_bind_checks():
    plan = lb.bind(_fn, RULES, PARAMS, X)
    with pytest.raises(ValueError, match="16 bits are for inputs"):
        lb.with_quantizers(plan, lambda row: "w16,a16" if row.path == "b" else None)
    with pytest.raises(TypeError, match="rule text"):
        lb.with_quantizers(plan, lambda row: 8)
    with pytest.raises(ValueError, match="bind again"):
        lb.with_quantizers(from_json(to_json(plan)), lambda row: None)


def test_states_that_fit_are_carried_over():
    plan = lb.bind(_fn, RULES, PARAMS, X)
    qstate = lb.calibrate(_fn, plan, PARAMS, [(5 * X,)])
    made, after = lb.rebind(_fn, plan, {"b": "w4,a8", **RULES}, PARAMS, qstate, X)
    fresh = lb.init(_fn, made, PARAMS, X)
    lb.pack(made, PARAMS, after)
    for key, role, source in (
        ("a", "weight", qstate),
        ("a", "input", qstate),
        ("b", "input", qstate),
        ("b", "weight", fresh),
    ):
        for part in ("learn", "fixed"):
            _same(after[part][key][role], source[part][key][role])
    kept = jax.tree.leaves(after["fixed"]["a"]["input"]) + jax.tree.leaves(after["learn"]["a"]["input"])
    new = jax.tree.leaves(fresh["fixed"]["a"]["input"]) + jax.tree.leaves(fresh["learn"]["a"]["input"])
    assert any(bool(jnp.any(a != b)) for a, b in zip(kept, new, strict=True))


def test_all_refusals_come_at_once_with_rules_to_paste():
    def fn(p, x):
        a, b = p["a"] * x[0][:, None], p["b"] * x[1][:, None]
        return x @ a @ b @ (p["b"].T @ p["g"][:, None])

    with pytest.raises(ValueError, match="2 operations are refused") as refused:
        lb.bind(fn, RULES, PARAMS, X)
    text = str(refused.value)
    assert text.count("test_plans.py:") == 2
    assert text.count("mixes parameters with data") == 2
    pasted = ast.literal_eval(text.splitlines()[-1].strip())
    assert list(pasted.values()) == ["keep", "keep", "w8,a8"]
    plan = lb.bind(fn, pasted, PARAMS, X)
    assert [row.is_quantized for row in plan] == [False, False, True]


def test_shared_weights_are_refused_with_the_rest():
    """Three faults of two kinds at once; the rules of the error bind."""
    params = {"s": normal(4, 8, 8), "t": normal(5, 8, 8), "mixed": normal(6, 8, 8), "ok": normal(8, 8, 4)}

    def fn(p, x):
        y = x @ p["s"] + x @ p["s"].T
        y = y @ p["t"] + y @ p["t"].T
        return y @ (p["mixed"] * x[0][:, None]), y @ p["ok"]

    with pytest.raises(ValueError, match="3 operations are refused") as refused:
        lb.bind(fn, {"**": "w4/g4,a8/dynamic"}, params, normal(9, 3, 8))
    text = str(refused.value)
    assert text.count("test_plans.py:") == 5
    assert text.count("contract different axes") == 2
    assert "t/dot_0" in text
    pasted = ast.literal_eval(text.splitlines()[-1].strip())
    assert pasted["s"] == pasted["t"] == "w4/tensor,a8/dynamic"
    assert pasted["t/dot_0"] == "keep"
    plan = lb.bind(fn, pasted, params, normal(9, 3, 8))
    assert [row.path for row in plan if not row.is_quantized] == ["t/dot_0"]
    assert plan["s@0"].weight.spec.text == "int4/tensor/sym"


def test_all_that_has_no_integer_form_is_in_one_error():
    params, x = {"a": normal(4, 8, 8), "b": normal(5, 8, 8), "c": normal(6, 8, 4)}, normal(7, 3, 8)

    def fn(p, x):
        y = jnp.sort(x @ p["a"], -1)
        y = jnp.cumprod(y @ p["b"], -1)
        return jnp.argsort(y, -1).astype(jnp.float32) @ p["c"]

    with pytest.raises(ValueError, match="5 operations are refused") as refused:
        lb.bind(fn, {"c": "keep", "**": "w8,a8"}, params, x, integer=True)
    text = str(refused.value)
    for word in ("cannot place sort", "cannot place cumprod", "it follows a", "it follows b", "of c (test_plans.py:"):
        assert word in text
    assert text.count("test_plans.py:") == 5


def test_rules_that_take_nothing_are_named_together():
    with pytest.raises(ValueError, match="2 rules never apply") as refused:
        lb.bind(_fn, {"nothing": "w4", "**": "w8,a8", "b": "w4"}, PARAMS, X)
    assert "'nothing' matches no operation" in str(refused.value)
    assert "'b' never applies: '**'" in str(refused.value)


ODD = [None, True, -1, 0, 1 << 70, 1.5, "", "x", [], {}, [[]], {"a": 1}, ["y"]]


def test_a_plan_of_nonsense_is_refused_or_is_a_plan():
    """Whatever stands anywhere: ValueError, or a plan that can be shown and written."""
    text = to_json(lb.bind(_integer, RULES, PARAMS, X, integer=True))
    data, draw, refused = json.loads(text), random.Random(0), 0

    def places(value, at=()):
        if at:
            yield at
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from places(value[key], (*at, key))

    known = list(places(data))
    for _ in range(400):
        said, at = copy.deepcopy(data), draw.choice(known)
        inner = functools.reduce(lambda x, key: x[key], at[:-1], said)
        if draw.random() < 0.2:
            del inner[at[-1]]
        else:
            inner[at[-1]] = draw.choice(ODD)
        try:
            plan = from_json(json.dumps(said))
        except ValueError:
            refused += 1
            continue
        assert str(plan)
        assert from_json(to_json(plan)) == plan
    assert refused > 200
    for odd in (
        "",
        "[" * 100_000,
        "null",
        "{}",
        '{"version": true}',
        text.replace('"version":1', '"version":1,"version":1'),
    ):
        with pytest.raises(ValueError, match="plan"):
            from_json(odd)
