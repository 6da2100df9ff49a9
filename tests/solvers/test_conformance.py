"""`lowbit check`: laws told apart on roundings whose kind is known."""

import numpy as np
import pytest

from lowbit.cli import main
from lowbit.solvers.conformance import check


def case(rho=0.9, size=64, columns=256, bits=8):
    """Inputs of an autoregressive process, and steps so fine that nothing clips."""
    rng = np.random.default_rng(0)
    h = rho ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    x = rng.normal(size=(4000, size)) @ np.linalg.cholesky(h).T
    w = rng.normal(size=(size, columns))
    return w, x, np.abs(w).max(axis=0) / (2 ** (bits - 1) - 1) * 1.05


def gptq(w, x, s, *, has_cholesky=True):
    """Algorithm 1 in float64; without its Cholesky factor, as two tools had it: errors spread by the inverse itself."""
    h = x.T @ x / len(x)
    inverse = np.linalg.inv(h + 0.01 * np.mean(np.diag(h)) * np.eye(len(h)))
    upper = np.linalg.cholesky(inverse).T if has_cholesky else inverse
    left, codes = w.copy(), np.zeros(w.shape, np.int8)
    for i in range(len(w)):
        codes[i] = np.rint(left[i] / s)
        left[i + 1 :] -= upper[i, i + 1 :, None] * ((left[i] - codes[i] * s) / upper[i, i])
    return codes


def verdicts(*arguments, **keywords):
    return {each.name: each for each in check(*arguments, **keywords)}


def test_gptq_obeys_its_law_and_its_bound():
    w, x, s = case()
    found = verdicts(w, gptq(w, x, s), s, bits=8, inputs=x)
    assert found["error over nearest"].verdict == "holds"
    assert found["Babai's bound"].verdict == "holds"
    law = (1 + 63 * (1 - 0.9**2)) / 64  # of the process; the sample's is within a few percent, damping adds some
    assert float(found["error over nearest"].text.split(";")[0]) == pytest.approx(law, rel=0.15)


def test_feedback_without_cholesky_is_told_from_gptq_and_from_none():
    w, x, s = case()
    without = verdicts(w, gptq(w, x, s, has_cholesky=False), s, bits=8, inputs=x)["error over nearest"]
    nearest = verdicts(w, np.rint(w / s).astype(np.int8), s, bits=8, inputs=x)["error over nearest"]
    assert without.verdict == "fails"
    assert "no Cholesky factor" in without.text
    assert nearest.verdict == "fails"
    assert "no feedback" in nearest.text


def test_values_that_are_not_code_times_scale_are_found():
    w, _, s = case()
    codes = np.rint(w / s).astype(np.int8)
    exact = verdicts(w, codes, s, bits=8, values=codes * s)["code x scale"]
    s16 = np.float32(np.float16(s))  # the tool rounded with scales that it then rounded
    other = verdicts(w, codes, s16, bits=8, values=codes * s)["code x scale"]
    assert (exact.verdict, other.verdict) == ("holds", "fails")
    assert "float16" in verdicts(w, codes, s16, bits=8)["scales"].text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.full((64, 256), 9)}, "reach from 9 to 9; 4 bits hold -8 to 7"),
        ({"scales": np.zeros(256)}, "256 of 256 scales are zero"),
        ({"codes": np.zeros((256, 64), int)}, "integers of its shape"),
        ({"inputs": np.ones((3, 5))}, r"inputs must be finite and \[rows, 64\]"),
    ],
)
def test_what_cannot_be_checked_says_why(change, message):
    w, x, s = case()
    given = {"weight": w, "codes": np.zeros(w.shape, int), "scales": s, "inputs": x} | change
    with pytest.raises(ValueError, match=message):
        check(given["weight"], given["codes"], given["scales"], bits=4, inputs=given["inputs"])


def test_the_command_reads_files(tmp_path, capsys):
    w, x, s = case()
    np.savez(tmp_path / "a.npz", weight=w.T, codes=gptq(w, x, s).T, scales=s[:, None], inputs=x)
    assert main(["check", str(tmp_path / "a.npz"), "--bits", "8", "--transposed"]) == 0
    assert "as good as GPTQ" in capsys.readouterr().out
    np.savez(tmp_path / "b.npz", weight=w, codes=np.rint(w / s).astype(int), scales=s, inputs=x)
    assert main(["check", str(tmp_path / "b.npz"), "--bits", "8"]) == 1
    np.savez(tmp_path / "c.npz", weight=w, colds=w)
    assert main(["check", str(tmp_path / "c.npz"), "--bits", "8"]) == 2
    assert "arrays must be called weight, inputs, codes" in capsys.readouterr().err
