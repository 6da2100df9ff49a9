"""Operations on one element, as XLA defines them: integers wrap, shifts past the width, division by zero."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from . import types
from .emit import Emitter, Expr, Rule
from .graph import Value
from .index import Index
from .simplify import is_within

_BODIES: Mapping[str, str] = {
    "add": "return ({T})(({U})a + ({U})b);",
    "sub": "return ({T})(({U})a - ({U})b);",
    "mul": "return ({T})(({U})a * ({U})b);",
    "max": "return a > b ? a : b;",
    "min": "return a < b ? a : b;",
    "shl": "return ({N})b < {w} ? ({T})(({U})a << ({N})b) : 0;",
    "srl": "return ({N})b < {w} ? ({T})(({N})a >> ({N})b) : 0;",
    "neg": "return ({T})(0 - ({U})a);",
    "div_signed": "return b == 0 ? ({T})-1 : b == -1 ? ({T})(0 - ({U})a) : ({T})(a / b);",
    "rem_signed": "return b == 0 ? a : b == -1 ? 0 : ({T})(a % b);",
    "sra_signed": "return ({N})b < {w} ? ({T})(a >> ({N})b) : ({T})(a < 0 ? -1 : 0);",
    "abs_signed": "return a < 0 ? ({T})(0 - ({U})a) : a;",
    "sign_signed": "return ({T})((a > 0) - (a < 0));",
    "div_unsigned": "return b == 0 ? ({T})~({T})0 : ({T})(a / b);",
    "rem_unsigned": "return b == 0 ? a : ({T})(a % b);",
    "sra_unsigned": "return ({T})(b < {w} ? ({S})a >> b : ({S})a < 0 ? -1 : 0);",
    "abs_unsigned": "return a;",
    "sign_unsigned": "return a != 0;",
    "clz": "{N} u = ({N})a; {T} n = {w}; while (u != 0) {{ u = ({N})(u >> 1); --n; }} return n;",
    "popcount": "{N} u = ({N})a; {T} n = 0; while (u != 0) {{ n = ({T})(n + (u & 1)); u = ({N})(u >> 1); }} return n;",
    "mulhi": "return ({T})(((int64_t)a * b) >> 32);",
}
_ONE_OPERAND = ("neg", "abs", "sign", "clz", "popcount")
_HELPER_OF = {
    "add": "add", "add_any": "add", "sub": "sub", "mul": "mul", "max": "max", "min": "min", "div": "div", "rem": "rem",
    "shift_left": "shl", "shift_right_logical": "srl", "shift_right_arithmetic": "sra", "neg": "neg", "abs": "abs",
    "sign": "sign", "clz": "clz", "population_count": "popcount", "mul_high": "mulhi",
}  # fmt: skip
_INFIX = {"and": "&", "or": "|", "xor": "^", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_SHIFTS = {"shift_left": "shl", "shift_right_logical": "srl", "shift_right_arithmetic": "sra"}


def helper_source(name: str) -> str:
    """Returns the C function of a helper, such as ``add_i32``; ``sext_4`` and ``int4_at`` belong to packed integers."""
    if name in _PACKED:
        return _PACKED[name]
    word, short = name.rsplit("_", 1)
    width, is_signed = int(short[1:]), short[0] == "i"
    kind = f"{'' if is_signed else 'u'}int{width}_t"
    body = _BODIES.get(word) or _BODIES[f"{word}_{'signed' if is_signed else 'unsigned'}"]
    body = body.format(T=kind, U=f"uint{max(width, 32)}_t", N=f"uint{width}_t", S=f"int{width}_t", w=width)
    args = f"{kind} a" if word in _ONE_OPERAND else f"{kind} a, {kind} b"
    return f"static inline {kind} {name}({args})\n{{\n    {body}\n}}\n"


_PACKED = {
    "sext_2": "static inline int8_t sext_2(uint32_t a)\n{\n    return (int8_t)((int32_t)((a & 3u) ^ 2u) - 2);\n}\n",
    "sext_4": "static inline int8_t sext_4(uint32_t a)\n{\n    return (int8_t)((int32_t)((a & 15u) ^ 8u) - 8);\n}\n",
    "int2_at": (
        "/* Four to a byte, the lowest bits first. */\n"
        "static inline int8_t int2_at(const uint8_t *a, int32_t i)\n"
        "{\n    return (int8_t)((int32_t)(((a[i >> 2] >> (2 * (i & 3))) & 3) ^ 2) - 2);\n}\n"
    ),
    "int4_at": (
        "/* Two to a byte, the lowest bits first. */\n"
        "static inline int8_t int4_at(const uint8_t *a, int32_t i)\n"
        "{\n    return (int8_t)((int32_t)(((a[i >> 1] >> (4 * (i & 1))) & 15) ^ 8) - 8);\n}\n"
    ),
}


def operands(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> list[Expr]:
    """Returns the operands of an elementwise operation, axes of length 1 spread."""
    expressions = []
    for u in value.ins:
        own = zip(
            indices[len(indices) - len(u.shape) :], u.shape, value.shape[len(indices) - len(u.shape) :], strict=True
        )
        expressions.append(emitter.emit(u, tuple(Index() if n == 1 and n != whole else i for i, n, whole in own)))
    return expressions


def _narrow(value: Value, what: str) -> None:
    if types.bits(value.dtype) in (2, 4):
        raise ValueError(f"the C form cannot hold {what!r} of {value.dtype}: convert to int8 first")


def _called(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    _narrow(value, value.name)
    args = operands(emitter, value, indices)
    level = max(a.level for a in args)
    if value.name in _SHIFTS and is_within(value.ins[1], 0, types.bits(value.dtype) - 1):
        return Expr(_plain_shift(value, args), level)
    return Expr(emitter.call(_HELPER_OF[value.name], value.dtype, args), level)


def _plain_shift(value: Value, args: list[Expr]) -> str:
    """A shift by a constant below the width."""
    kind, (a, b) = types.c_type(value.dtype), (arg.text for arg in args)
    if value.name == "shift_right_arithmetic" and types.is_signed(value.dtype):
        return f"({a} >> {b})"
    width = types.bits(value.dtype)
    if value.name == "shift_left":
        return f"({kind})((uint{max(width, 32)}_t){a} << {b})"
    return f"({kind})((uint{width}_t){a} >> {b})"


def _boolean_or_called(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    """Of booleans, a sum or maximum is an or, a product or minimum an and."""
    if value.dtype != np.bool_:
        return _called(emitter, value, indices)
    word = "|" if value.name in ("add", "add_any", "max") else "&"
    args = operands(emitter, value, indices)
    return Expr(f"({args[0].text} {word} {args[1].text})", max(a.level for a in args))


def _infix(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    args = operands(emitter, value, indices)
    text = f"({args[0].text} {_INFIX[value.name]} {args[1].text})"
    return Expr(text, max(a.level for a in args))


def _not(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    (a,) = operands(emitter, value, indices)
    return Expr(f"!{a.text}" if value.dtype == np.bool_ else f"({types.c_type(value.dtype)})~{a.text}", a.level)


def _select(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    which, *cases = operands(emitter, value, indices)
    text = cases[-1].text
    if value.ins[0].dtype == np.bool_:
        text = f"({which.text} ? {cases[1].text} : {cases[0].text})"
    else:
        for i in reversed(range(len(cases) - 1)):
            text = f"({which.text} == {i} ? {cases[i].text} : {text})"
    return Expr(text, max(a.level for a in (which, *cases)))


def _clamp(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    low, x, high = operands(emitter, value, indices)
    inner = Expr(emitter.call("max", value.dtype, [x, low]), max(x.level, low.level))
    return Expr(emitter.call("min", value.dtype, [inner, high]), max(inner.level, high.level))


def _power(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    (x,) = operands(emitter, value, indices)
    power = value.params.get("y", 2)
    if power < 1:
        raise ValueError(f"the C form cannot hold integer_pow by {power}: 1 or more")
    x = emitter.temporary(x, value.dtype)
    text = x.text
    for _ in range(power - 1):
        text = emitter.call("mul", value.dtype, [Expr(text, x.level), x])
    return Expr(text, x.level)


def _converted(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    (x,) = operands(emitter, value, indices)
    old, new = value.ins[0].dtype, value.dtype
    if new == np.bool_:
        return Expr(f"({x.text} != 0)", x.level)
    (least, most), (low, high) = types.limits(old), types.limits(new)
    if low <= least and most <= high and types.bits(new) <= 32 and types.is_signed(new):
        return x  # C promotes it
    if types.bits(new) in (2, 4):
        if types.is_signed(new):
            name = emitter.helper(f"sext_{types.bits(new)}")
            return Expr(f"{name}((uint32_t){x.text})", x.level)
        return Expr(f"({types.c_type(new)})({x.text} & {high})", x.level)
    return Expr(f"({types.c_type(new)}){x.text}", x.level)


def _copied(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    return operands(emitter, value, indices)[0]


def _counted(emitter: Emitter, value: Value, indices: tuple[Index, ...]) -> Expr:
    index = indices[value.params["dimension"]]
    kind = types.c_type(value.dtype)
    return Expr(index.operand if value.dtype == jnp.int32 else f"({kind}){index.operand}", index.level)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_HELPER_OF, _called),
    **dict.fromkeys(("add", "add_any", "mul", "max", "min"), _boolean_or_called),
    **dict.fromkeys(_INFIX, _infix),
    "not": _not,
    "select_n": _select,
    "clamp": _clamp,
    "integer_pow": _power,
    "square": _power,
    "convert_element_type": _converted,
    "copy": _copied,
    "stop_gradient": _copied,
    "iota": _counted,
}
