"""Every input quantizer that is found is served as it was simulated: every range rule, every rounding, static and dynamic.

All of them are operations of one model, so that they cost a few programs. The right values are sums in float64 over codes
found by numpy: from a scale, round, clip.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core import clipping, ranges
from lowbit.core.qtensor import quantize_with
from lowbit.core.quantizer import Quantizer, Quantizers, is_served_by_spec
from lowbit.core.ranges import Full, RangeRule
from lowbit.core.spec import Operand
from lowbit.formats.rounding import ROUNDINGS
from lowbit.packed import native
from lowbit.plan.serial import from_json, to_json
from lowbit.quantizers.rtn import RTN
from tests.contract.cases import factories
from tests.values import heavy_tailed

X = jnp.round(heavy_tailed(0, 6, 48) * 8) / 8  # eighths: ties for grids whose step is a power of two
W = heavy_tailed(1, 48, 16)
TEXTS = ("a8", "a8/dynamic")
MORE = ("a4/sym", "a8/dynamic/affine", "auint4/sym", "a8/dynamic/e8m0")
"""One of them for every quantizer, in turn: what a text says goes through the same code whatever the range or the rounding."""


@dataclasses.dataclass(frozen=True)
class Half(Full):
    """A range rule that only this process has."""

    def of_values(self, x, operand, spec):
        return super().of_values(0.5 * x, operand, spec)


@dataclasses.dataclass(frozen=True)
class Even(RTN):
    """Levels of its own: every other one."""

    def quantize(self, qstate, x, operand):
        q = super().quantize(qstate, x, operand)
        return dataclasses.replace(q, codes=2.0 * jnp.floor(q.codes * 0.5))


@dataclasses.dataclass(frozen=True)
class Mine(RTN):
    """Another start, the grid of its spec."""

    def update(self, qstate, stats):
        return qstate


@dataclasses.dataclass(frozen=True)
class ByHand(Quantizer):
    """A quantizer from nothing: a fixed step, rounded down."""

    def init(self, operand, stats, key):
        return {"learn": {"step": jnp.full((1,) * len(operand.shape), 0.25)}, "fixed": {}}

    def quantize(self, qstate, x, operand):
        def nearest(scaled, low, high):
            return jnp.clip(jnp.floor(scaled), low, high)

        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        return quantize_with(x, self.spec, qstate["learn"]["step"], None, blocks, nearest=nearest)


def rules():
    """Every range rule of lowbit that can be made without arguments, and a user's."""
    found = {
        rule
        for module in (ranges, clipping)
        for rule in vars(module).values()
        if isinstance(rule, type) and issubclass(rule, RangeRule) and not inspect.isabstract(rule)
    }
    return [*sorted(found, key=lambda rule: rule.__name__), Half]


def found():
    """Input quantizers by name: every factory, every range rule, every rounding, static and dynamic and of more texts."""
    makers = {name: factory for name, factory in factories().items() if name != "rtn"}
    makers |= {rule.__name__: lambda text, rule=rule: lb.rtn(text, range=rule()) for rule in rules()}
    makers |= {name: lambda text, name=name: lb.rtn(text, rounding=name) for name in ROUNDINGS}
    made = {}
    for n, (name, make) in enumerate(makers.items()):
        for text in (*TEXTS, MORE[n % len(MORE)], *([MORE[3]] if name == "PowerOfTwo" else [])):
            try:
                made[f"{name}({text})"] = make(text).input
            except ValueError:
                continue
    spec = lb.rtn("a8/sym").input.spec
    for cls in (Even, Mine, ByHand):
        made[cls.__name__] = cls(spec)
    return {name.replace("/", "|"): quantizer for name, quantizer in made.items() if quantizer is not None}


@pytest.fixture(scope="module")
def served():
    quantizers = found()
    params = dict.fromkeys(quantizers, W)
    weight = lb.rtn("w8").weight
    plan = lb.bind(model, {name_pattern(name): Quantizers(weight, q) for name, q in quantizers.items()}, params, X)
    plan, qstate = lb.harden(plan, lb.init(model, plan, params, X))  # what learns its width is served as what it became
    quantizers = {name: next(s.quantizer for s in plan[name].sites if not s.is_weight) for name in quantizers}
    return quantizers, params, plan, qstate, lb.pack(plan, params, qstate)


def model(p, x):
    return {name: x @ w for name, w in p.items()}


def name_pattern(name):
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def test_they_are_found(served):
    quantizers = served[0]
    assert {type(q.range) for q in quantizers.values() if isinstance(q, RTN)} == set(rules())
    assert {q.rounding for q in quantizers.values() if isinstance(q, RTN)} == set(ROUNDINGS)
    assert {is_served_by_spec(q) for q in quantizers.values()} == {True, False}
    assert [is_served_by_spec(quantizers[name]) for name in ("Even", "Mine", "ByHand")] == [False, True, False]


@pytest.mark.parametrize("implementation", [None, "carried", "reference"])
def test_execute_is_simulate(served, implementation):
    quantizers, params, plan, qstate, qparams = served
    want = lb.simulate(model, plan)(params, qstate, X)
    got = lb.execute(model, plan, implementation=implementation)(qparams, X)
    assert not [name for name in quantizers if not np.array_equal(got[name], want[name])]


def test_numpy_agrees(served):
    """``round(x / s)``, clipped, times the codes of the weight, in float64; a code may go either way next to a tie."""
    quantizers, _, plan, qstate, qparams = served
    got = lb.execute(model, plan)(qparams, X)
    x = np.asarray(X, np.float64)
    s_w = np.abs(np.asarray(W, np.float64)).max(0) / 127
    codes_w = np.asarray(
        lb.rtn("w8").weight.encode(qstate_of(qstate, next(iter(quantizers)), "weight"), W, weight_operand()).codes
    )
    operand = Operand(X.shape, contract=(1,), is_weight=False)
    for name, q in quantizers.items():
        if not isinstance(q, RTN) or isinstance(q, Even):
            continue
        if q.spec.dynamic:
            scale, zero = q.range.of_values(X, operand, q.spec)
        else:
            state = qstate["fixed"][name]["input"]
            scale, zero = state["scale"], state.get("zero")
        s, z = np.asarray(scale, np.float64), 0.0 if zero is None else np.asarray(zero, np.float64)
        steps = x / s
        rounded = np.round(steps) if q.rounding == "nearest_even" else np.copysign(np.floor(np.abs(steps) + 0.5), steps)
        level = np.clip(rounded, q.spec.format.low - z, q.spec.format.high - z)
        # Where float32 may see another side of the middle: four roundings of x / s.
        close = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 4 * 2.0**-24 * np.abs(steps)
        exact = np.isin(np.log2(s), np.arange(-126, 127)) & np.ones_like(close)
        want = (level * s) @ (codes_w * s_w)
        may = ((close & ~exact) * s) @ np.abs(codes_w * s_w)
        bound = may + 8 * 2.0**-24 * (np.abs(level * s) @ np.abs(codes_w * s_w))
        assert (np.abs(np.asarray(got[name]) - want) <= bound).all(), name


def qstate_of(qstate, name, role):
    return {part: qstate[part][name][role] for part in ("learn", "fixed")}


def weight_operand():
    return Operand(W.shape, contract=(0,))


def test_the_rules_differ(served):
    """Rules that gave the same numbers would prove nothing."""
    quantizers, _, plan, _, qparams = served
    got = lb.execute(model, plan)(qparams, X)
    names = [f"{rule.__name__}(a8|dynamic)" for rule in rules() if f"{rule.__name__}(a8|dynamic)" in quantizers]
    results = {np.asarray(got[n]).tobytes() for n in names}
    assert len(names) >= 7
    assert (
        len(results) >= len(names) - 2
    )  # a moving average of one row is its full range, and 48 values lose none to entropy


def test_explain_says_so(served):
    quantizers, _, plan, _, qparams = served
    lines = dict(line.split("  ", 1) for line in lb.explain(model, plan, qparams, X).splitlines())
    lines = {path.strip(): line for path, line in lines.items()}
    for name, quantizer in quantizers.items():
        said = quantizer.text in next(line for path, line in lines.items() if path == name)
        assert said == (not is_served_by_spec(quantizer)), name
        if native.status() is None and quantizer.spec.symmetric and quantizer.spec.scale.name == "float32":
            assert lines[name].split()[0] == "cpu", name


@pytest.mark.parametrize(
    "quantizer",
    [lb.rtn("a8", rounding="half_away").input, Even(lb.rtn("a8/sym").input.spec)],
    ids=["half_away", "even"],
)
def test_what_cannot_follow_refuses(quantizer, tmp_path):
    """A file, an exported form and a full-integer plan name the quantizer; the plan that has it goes on."""
    params, rule = {"w": W}, Quantizers(lb.rtn("w8").weight, quantizer)
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    plan = lb.bind(fn, {"**": rule}, params, X)
    qparams = lb.pack(plan, params, lb.init(fn, plan, params, X))
    with pytest.raises(ValueError, match=r"input of w is quantized by (rtn|even)\("):
        lb.bind(fn, {"**": rule}, params, X, integer=True)
    with pytest.raises(ValueError, match=r"input of w is quantized by (rtn|even)\("):
        lb.export(fn, plan, qparams, (X,), tmp_path / "bundle")
    read = from_json(to_json(plan))
    with pytest.raises(ValueError, match=r"input is quantized by (rtn|even)\(.*bind with the same rules"):
        lb.execute(fn, read)(qparams, X)
    lb.save(tmp_path / "m.lowbit", plan, qparams)
    again = lb.load(tmp_path / "m.lowbit")[1]
    np.testing.assert_array_equal(lb.execute(fn, plan)(again, X), lb.execute(fn, plan)(qparams, X))


def test_convolutions_too():
    """A convolution's input, whose codes go to the kernel."""
    params, x = {"w": heavy_tailed(3, 3, 3, 4, 8)}, heavy_tailed(4, 2, 6, 5, 4)

    def fn(p, x):
        return jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    plan = lb.bind(fn, {"**": Quantizers(lb.rtn("w8").weight, Even(lb.rtn("a8/sym").input.spec))}, params, x)
    qstate = lb.init(fn, plan, params, x)
    qparams, want = lb.pack(plan, params, qstate), lb.simulate(fn, plan)(params, qstate, x)
    for implementation in (None, "carried", "reference"):
        np.testing.assert_array_equal(lb.execute(fn, plan, implementation=implementation)(qparams, x), want)
