"""Laws that a rounded weight must obey, whoever rounded it: from float weights, inputs, codes and scales alone.

Everything is computed in float64 numpy, apart from the solvers that the same laws are used to test. With ``H`` the second
moment of the inputs, ``c_k`` the variance of input ``k`` given those rounded after it, and ``s_kn`` the step of an entry:

* rounding to nearest loses ``sum s^2 H_kk / 12``, GPTQ without clipping ``sum s^2 c_k / 12``: their quotient is the law;
* without clipping an output of GPTQ loses at most ``sum_k s_kn^2 c_k / 4`` (Babai's nearest plane);
* feedback by the inverse of ``H`` without its Cholesky factor lies between the two.

Reference: Frantar et al., 2023, https://arxiv.org/abs/2210.17323; Chen et al., The geometry of LLM quantization: GPTQ as
Babai's nearest plane algorithm, 2025, https://arxiv.org/abs/2507.18553.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        name: what.
        verdict: ``holds``, ``fails`` or ``measured``.
        text: numbers.
    """

    name: str
    verdict: str
    text: str


def check(
    weight: Any,
    codes: Any,
    scales: Any,
    *,
    bits: int,
    inputs: Any = None,
    zeros: Any = None,
    values: Any = None,
    damping: float = 0.01,
) -> tuple[Finding, ...]:
    """Returns what holds and what does not.

    Args:
        weight: float ``[K, N]``.
        codes: integers ``[K, N]``, signed, or from 0 with ``zeros``.
        scales: ``[groups, N]`` or ``[N]``: groups of neighbours along ``K``.
        bits: of a code.
        inputs: float ``[rows, K]``: what the weight is multiplied by. None: only the grid is checked.
        zeros: zero points of the scales' shape, or None.
        values: what the other tool says that the weight became, or None.
        damping: of the second moment, as a share of its mean.

    Raises:
        ValueError: for shapes that do not fit, codes that take more bits, or numbers that are not finite.
    """
    w, q, s, z = _arrays(weight, codes, scales, zeros)
    k, n = w.shape
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if z is None else (0, 2**bits - 1)
    if q.min() < low or q.max() > high:
        raise ValueError(f"codes reach from {q.min()} to {q.max()}; {bits} bits hold {low} to {high}")
    step = np.repeat(s, -(-k // len(s)), axis=0)[:k]
    shift = 0.0 if z is None else np.repeat(z, -(-k // len(z)), axis=0)[:k]
    rounded = (q - shift) * step
    place = w / step + shift
    nearest = np.clip(np.rint(place), low, high)
    findings = [_codes(q, nearest, place, low, high), _scales(s), _width(np.asarray(codes), bits)]
    if values is not None:
        findings.append(_values(np.asarray(values, np.float64), rounded, step))
    if inputs is None:
        return tuple(findings)
    x = np.asarray(inputs, np.float64)
    if x.ndim != 2 or x.shape[1] != k or not np.isfinite(x).all():
        raise ValueError(f"inputs must be finite and [rows, {k}], got {x.shape}")
    h = x.T @ x / len(x)
    mean = np.mean(np.diag(h))
    off, plain = rounded - w, (nearest - shift) * step - w
    loss, base = (np.einsum("kn,kj,jn->n", d, h, d) for d in (off, plain))
    ratio = loss.sum() / base.sum() if base.sum() > 0 else 1.0
    wet = h + damping * mean * np.eye(k)
    laws = {"as they come": np.arange(k), "largest first": np.argsort(-np.diag(h), kind="stable")}
    variances = {name: _variance(wet, order) for name, order in laws.items()}
    square = np.square(step).sum(axis=1)
    expected = {name: float(c @ square / (np.diag(h) @ square)) for name, c in variances.items()}
    findings += [_ratio(ratio, expected, n), _babai(loss, step, variances, place, low, high)]
    signal = np.einsum("kn,kj,jn->", w, h, w)
    findings.append(Finding("results", "measured", f"{10 * np.log10(signal / max(loss.sum(), 1e-300)):.2f} dB"))
    return tuple(findings)


def _arrays(weight: Any, codes: Any, scales: Any, zeros: Any) -> tuple[np.ndarray, ...]:
    w, q, s = np.asarray(weight, np.float64), np.asarray(codes), np.asarray(scales, np.float64)
    if w.ndim != 2 or q.shape != w.shape or not np.issubdtype(q.dtype, np.integer):
        raise ValueError(f"weight must be [K, N] and codes integers of its shape, got {w.shape}, {q.shape} {q.dtype}")
    s = s[None] if s.ndim == 1 else s
    if s.ndim != 2 or s.shape[1] not in (1, w.shape[1]) or not 1 <= len(s) <= len(w):
        raise ValueError(f"scales must be [groups, {w.shape[1]}] or [{w.shape[1]}], got {np.shape(scales)}")
    s = np.broadcast_to(s, (len(s), w.shape[1]))
    z = (
        None
        if zeros is None
        else np.broadcast_to(np.asarray(zeros, np.float64).reshape(-1, np.shape(zeros)[-1]), s.shape)
    )
    for name, x in (("weight", w), ("scales", s)):
        if not np.isfinite(x).all():
            raise ValueError(f"{name} holds NaN or infinity")
    if (s == 0).any():
        raise ValueError(f"{int((s == 0).sum())} of {s.size} scales are zero: the other tool saw no data for them")
    return w, q.astype(np.int64), s, z  # pyright: ignore[reportReturnType]  # zero points may be absent


def _variance(h: np.ndarray, order: np.ndarray) -> np.ndarray:
    """``c``: of every input, given those that come after it in ``order``."""
    behind = order[::-1]
    c = np.zeros(len(h))
    c[behind] = np.diag(np.linalg.cholesky(h[np.ix_(behind, behind)])) ** 2
    return c


def _codes(q: np.ndarray, nearest: np.ndarray, place: np.ndarray, low: int, high: int) -> Finding:
    beyond = (place < low - 0.5) | (place > high + 0.5)
    same, ends = np.mean(q == nearest), np.mean((q == low) | (q == high))
    text = f"{100 * same:.1f} % are the nearest; {100 * ends:.1f} % at an end; {100 * beyond.mean():.2f} % of weights beyond"
    return Finding("codes", "measured", text)


def _scales(s: np.ndarray) -> Finding:
    narrow = {
        "a power of two": np.frexp(np.abs(s))[0] == 0.5,
        "bfloat16": (np.float32(s).view(np.uint32) & 0xFFFF) == 0,
        "float16": np.float16(np.clip(s, -65504, 65504)).astype(np.float64) == s,
    }
    fits = [name for name, each in narrow.items() if each.all()]
    text = f"{s.shape[0]} per output, {np.abs(s).min():.3g} to {np.abs(s).max():.3g}, {100 * np.mean(s < 0):.0f} % negative"
    return Finding("scales", "measured", f"{text}; all of them are {fits[0] if fits else 'float32'}")


def _width(codes: np.ndarray, bits: int) -> Finding:
    stored = 8 * codes.dtype.itemsize
    return Finding("width", "measured", f"{stored} bits are stored for a code of {bits}")


def _values(values: np.ndarray, rounded: np.ndarray, step: np.ndarray) -> Finding:
    if values.shape != rounded.shape:
        raise ValueError(f"values must have the weight's shape {rounded.shape}, got {values.shape}")
    far = np.max(np.abs(values - rounded) / np.abs(step))
    verdict = "holds" if far <= 2.0**-22 * max(1.0, float(np.max(np.abs(rounded / step)))) else "fails"
    return Finding("code x scale", verdict, f"differs from the tool's own values by up to {far:.3g} steps")


def _ratio(ratio: float, laws: dict[str, float], columns: int) -> Finding:
    best = min(laws.values())
    worst = max(laws.values())
    room = 1.03 + 2.5 / np.sqrt(columns)
    said = ", ".join(f"{name} {law:.4f}" for name, law in laws.items())
    if ratio <= worst * room:
        verdict, text = "holds", "as good as GPTQ" if ratio >= best / room else "better than GPTQ on these scales"
    elif ratio >= 0.98:
        verdict, text = "fails", "no better than nearest: no feedback between entries"
    else:
        verdict, text = "fails", "feedback, but not GPTQ's (no Cholesky factor, stale scales, or clipping)"
    return Finding("error over nearest", verdict, f"{ratio:.4f}; GPTQ's law, rows {said}: {text}")


def _babai(
    loss: np.ndarray, step: np.ndarray, variances: dict[str, np.ndarray], place: np.ndarray, low: int, high: int
) -> Finding:
    inside = ((place >= low - 0.5) & (place <= high + 0.5)).all(axis=0)
    share = max(float(np.mean(loss[inside] <= 0.25 * (c @ np.square(step))[inside] * (1 + 1e-6))) if inside.any() else 1.0
                for c in variances.values())  # fmt: skip
    text = f"{100 * share:.1f} % of {int(inside.sum())} outputs without clipping are within sum s^2 c / 4"
    return Finding("Babai's bound", "holds" if share == 1.0 else "fails", text)
