"""Paths of leaves: injective, usual ones as they are, and each a glob that matches itself alone."""

import collections
import dataclasses
import random
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowbit as lb
from lowbit.core.paths import flatten, is_match
from lowbit.packed.trees import Dropped
from lowbit.packed.trees import flatten as flatten_packed


class Pair(NamedTuple):
    value: Any
    key: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Critic:
    value: Any
    policy: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Only:
    value: Any


@jax.tree_util.register_pytree_node_class
class Unnamed:  # without keys: its children are counted
    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


class Twice:
    """A node that gives both of its children one key."""


jax.tree_util.register_pytree_with_keys(
    Twice, lambda _: (((jax.tree_util.DictKey("w"), 1), (jax.tree_util.DictKey("w"), 2)), None), lambda *_: Twice()
)

USUAL = {
    "layers/0/kernel": {"layers": [{"kernel": 0}]},
    "head/kernel": {"params": {"head": {"kernel": 0}}},
    "mlp/~/linear_0/w": {"mlp/~/linear_0": {"w": 0}},  # as haiku writes it
    "block/1/bias": {"block": {1: {"bias": 0}}},
    "critic/value": {"critic": Only(0)},
    "value": {"value": 0},
    "value/key": {"value": {"key": 0}},
    "params": {"params": 0},
    "": 0,
}


@pytest.mark.parametrize("path", USUAL)
def test_usual_paths(path):
    assert flatten(USUAL[path])[0] == [path]


def test_boxes_of_flax_are_no_keys():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, ("in", "out")))(x)

    assert flatten(Boxed().init(jax.random.key(0), jnp.ones((1, 2))))[0] == ["Dense_0/bias", "Dense_0/kernel"]
    assert flatten(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))[0] == ["bias", "kernel"]


def test_escaped_paths():
    assert flatten({"a/b": 0, "a": {"b": 0}})[0] == ["a/b", "a%2Fb"]
    assert flatten({"w": 0, "params": {"w": 0, "v": 0}})[0] == ["v", "params/w", "w"]
    assert flatten(collections.OrderedDict([("1", 0), (1, 0)]))[0] == ["1", "%=1"]
    assert flatten({"": 0, "a": {"": 0}})[0] == ["%", "a/%"]
    assert flatten({"w*": 0, "w?": 0, "w@0": 0, "50%": 0, "new\nline": 0})[0] == [
        "50%25",
        "new%0Aline",
        "w%2A",
        "w%3F",
        "w%400",
    ]
    with pytest.raises(ValueError, match="several leaves have the path 'w'"):
        flatten(Twice())


NAMES = ["a", "b", "a/b", "/", "", "value", "params", "a%2Fb", "%2F", "%", "%=1", "1", "*", "?", "a@0", "**", "dot_0"]


def _tree(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.2:
        return 0
    kind = rng.choice(
        ["dict", "dict", "dict", "ordered", "list", "tuple", "pair", "critic", "only", "unnamed", "integers"]
    )
    children = [_tree(rng, depth - 1) for _ in range(3)]
    match kind:
        case "dict":
            return dict(zip(rng.sample(NAMES[: rng.choice([3, 7, 17])], 3), children, strict=True))
        case "ordered":
            return collections.OrderedDict(zip(rng.sample([*NAMES, 1, 2, 1.0, ("a", 1)], 3), children, strict=False))
        case "integers":
            return dict(zip(rng.sample([0, 1, 2, 10], 3), children, strict=True))
        case "pair":
            return Pair(*children[:2])
        case "critic":
            return Critic(*children[:2])
        case "only":
            return Only(children[0])
        case "unnamed":
            return Unnamed(*children)
        case _:
            return children if kind == "list" else tuple(children)


def test_random_trees_have_a_path_per_leaf_that_matches_itself_alone():
    rng, collisions = random.Random(0), 0
    for i in range(400):
        nested = _tree(rng, 3)
        paths, leaves, tree = flatten(nested if i % 4 else {"a": {"b": nested}, "a/b": nested})
        assert tree.num_leaves == len(leaves) == len(paths) == len(set(paths))
        assert all([is_match(glob, path) for path in paths] == [path == glob for path in paths] for glob in paths[:20])
        collisions += any("%2F" in path for path in paths)
    assert collisions > 20  # the trees do have leaves that are written alike


def test_paths_do_not_move_when_leaves_are_packed_or_dropped():
    tree = {"a/b": 0, "a": {"b": 0}, "w": 0, "params": {"w": 0}}
    want = flatten(tree)[0]
    for i in range(4):
        leaves = [Dropped((2,), "float32") if j == i else 0 for j in range(4)]
        assert flatten_packed(jax.tree.unflatten(jax.tree.structure(tree), leaves))[0] == want


R = np.random.default_rng(5)
A, B = (jnp.asarray(R.normal(size=(8, 8)) * k, jnp.float32) for k in (10.0, 1.0))
X = jnp.asarray(R.normal(size=(5, 8)), jnp.float32)
TREES = {
    "slash": ({"a/b": A, "a": {"b": B}}, lambda p: (p["a/b"], p["a"]["b"])),
    "value": ({"w": {"value": A}, "value": B}, lambda p: (p["w"]["value"], p["value"])),
    "params": ({"params": {"w": A}, "w": B}, lambda p: (p["params"]["w"], p["w"])),
    "repeats": ({"w@0": A, "w": B}, lambda p: (p["w@0"], p["w"])),
    "product": ({"dot_0": A, "dot_1": B}, lambda p: (p["dot_0"], p["dot_1"])),
    "steps": ({"input_0": A, "add_0": B}, lambda p: (p["input_0"], p["add_0"])),
    "tables": ({"table_0": A, "input_0": B}, lambda p: (p["table_0"], p["input_0"])),
    "empty": ({"": A, "a": {"": B}}, lambda p: (p[""], p["a"][""])),
    "globs": ({"*": A, "**": B}, lambda p: (p["*"], p["**"])),
    "integers": ({1: A, 10: B}, lambda p: (p[1], p[10])),
    "texts": (collections.OrderedDict([("1", A), (1, B)]), lambda p: (p["1"], p[1])),
    "named tuple": (Pair(A, B), lambda p: (p.value, p.key)),
    "dataclass": (Critic(A, B), lambda p: (p.value, p.policy)),
    "sequence": ((A, [B]), lambda p: (p[0], p[1][0])),
    "no keys": (Unnamed(A, B), lambda p: p.children),
}


def _run(params, read, **options):
    def model(p, x):
        a, b = read(p)
        h = jnp.tanh(x @ a) @ b
        return h + jnp.tanh(h) @ b

    plan = lb.bind(model, {"**": "w8,a8"}, params, X, **options)
    qstate = lb.init(model, plan, params, X)
    qparams = lb.pack(plan, params, qstate)
    return plan, lb.simulate(model, plan)(params, qstate, X), lb.execute(model, plan)(qparams, X)


@pytest.fixture(scope="module")
def plain():
    """The same network with names that nobody confuses."""
    params, read = {"first": A, "second": B}, lambda p: (p["first"], p["second"])
    return {integer: _run(params, read, integer=integer)[1:] for integer in (False, True)}


@pytest.mark.parametrize("name", TREES)
def test_names_change_no_number(plain, name):
    params, read = TREES[name]
    for integer in (False, True) if name in ("slash", "steps", "tables") else (False,):  # a second each
        plan, simulated, executed = _run(params, read, integer=integer)
        assert len({row.path for row in plan}) == 3
        assert len({row.weight.key for row in plan}) == 2
        assert len({step.path for step in plan.steps}) == len(plan.steps)
        np.testing.assert_array_equal(simulated, plain[integer][0])
        np.testing.assert_array_equal(executed, plain[integer][1])


@pytest.mark.parametrize("name", TREES)
def test_every_parameter_is_reached_by_a_rule_of_its_own(name):
    params, read = TREES[name]

    def model(p, x):
        a, b = read(p)
        return jnp.tanh(x @ a) @ b

    first, second = (row.path for row in lb.bind(model, {}, params, X))
    plan = lb.bind(model, {first: "keep", second: "w4"}, params, X)
    assert [row.is_quantized for row in plan] == [False, True]
    assert [path for path, each in zip(*flatten(params)[:2], strict=True) if each is A] == [first]
