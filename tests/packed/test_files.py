"""Checkpoints: one file, exact, refused when it is not what was saved."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

import lowbit as lb
from lowbit.core.qtensor import QTensor
from lowbit.formats.integer import Integer
from lowbit.packed import files
from lowbit.packed.trees import Dropped

ROOT = Path(__file__).parents[2]


def net(params, state, x):
    """Convolutions, a normalisation, dense layers."""
    x = jax.nn.relu((conv(x, params["stem"]["kernel"], 1) - state["mean"]) * params["stem"]["scale"])
    x = jax.nn.relu(conv(x, params["down"]["kernel"], 2))
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ params["mid"]["kernel"] + params["mid"]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def conv(x, kernel, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def packed(rules, dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_t(4.0, shape) * 0.2, dtype)

    params = {
        "stem": {"kernel": draw(3, 3, 3, 8), "scale": draw(8)},
        "down": {"kernel": draw(3, 3, 8, 12)},
        "mid": {"kernel": draw(192, 37), "bias": draw(37)},
        "head": {"kernel": draw(37, 5), "bias": draw(5)},
    }
    state, x = {"mean": draw(8)}, draw(4, 7, 7, 3)
    plan = lb.bind(net, rules, params, state, x)
    return net, plan, lb.pack(plan, params, lb.init(net, plan, params, state, x)), (state, x)


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in pairs
    )


RULES = {
    "integers": {"head/*": "w8/tensor,a8", "**": lb.lsq("w4,a4")},
    "groups": {"stem/*": "w2,a8", "down/*": "w2,a8", "**": "w4/g8/affine/bfloat16,a8/dynamic"},
    "weight only": {"mid/*": "wnf4/g16/dq", "head/*": "wfp8_e4m3", "**": "w3"},
    "block scaled": {"mid/*": "wnvfp4", "head/*": "wmxfp4", "**": "keep"},
    "16 bits": {"**": "w8/t4x2,aint16"},
}


@pytest.mark.parametrize("name", RULES)
def test_a_checkpoint_executes_bit_for_bit(tmp_path, name):
    fn, plan, qparams, args = packed(RULES[name])
    lb.save(tmp_path / "model.lowbit", plan, qparams)
    read_plan, read = lb.load(tmp_path / "model.lowbit")
    assert same(read, qparams)
    assert [[s.spec for s in row.sites] for row in read_plan] == [[s.spec for s in row.sites] for row in plan]
    assert str(read_plan) == str(plan)
    assert np.array_equal(lb.execute(fn, read_plan)(read, *args), lb.execute(fn, plan)(qparams, *args))


def test_the_file_is_the_arrays_and_a_small_header(tmp_path):
    _, plan, qparams, _ = packed(RULES["integers"])
    size = lb.save(tmp_path / "m", plan, qparams)
    assert size == (tmp_path / "m").stat().st_size
    assert lb.nbytes(qparams) < size < lb.nbytes(qparams) + 12_000
    mid = qparams.params["mid"]["kernel"]
    assert mid.codes.nbytes == -(-192 * 37 // 2) or mid.codes.nbytes == 192 * 19  # half a byte, and padding
    with safetensors.safe_open(tmp_path / "m", "numpy") as file:  # any safetensors reader can look inside
        assert file.get_tensor("params/mid/kernel/codes").nbytes == mid.codes.nbytes
        assert "float" not in str(file.get_tensor("params/mid/kernel/codes").dtype)
        assert json.loads(file.metadata()["lowbit"])["format"] == "lowbit"


def test_bfloat16_stays_two_bytes(tmp_path):
    _, plan, qparams, _ = packed({"mid/*": "w4/g32/bfloat16", "**": "keep"}, jnp.bfloat16)
    lb.save(tmp_path / "m", plan, qparams)
    _, read = lb.load(tmp_path / "m")
    assert read.params["head"]["kernel"].dtype == jnp.bfloat16
    assert read.params["mid"]["kernel"].scale.dtype == jnp.bfloat16
    assert same(read, qparams)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    _, plan, qparams, _ = packed(RULES["integers"])
    lb.save(tmp_path / "a", plan, qparams)
    lb.save(str(tmp_path / "b"), *lb.load(tmp_path / "a"))
    lb.save(tmp_path / "c", plan, qparams)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
    assert same(lb.load(tmp_path / "b")[1], qparams)


def test_trees_keep_their_shape(tmp_path):
    _, plan, qparams, _ = packed({"**": "w4"})
    params = {
        "b": [jnp.arange(3), (jnp.float16(2.5), None)],
        "a/b": jnp.ones((2, 0)),
        "a": {"b": np.full((2, 3), 7, np.int8), "c": Dropped((3, 4), "float32"), "d": {1: jnp.ones(1), 0: {}}},
        "q": qparams.params["mid"]["kernel"],
    }
    tree = lb.QParams(params, {"mid/kernel": {"input": {"scale": jnp.ones(())}}})
    lb.save(tmp_path / "m", plan, tree)
    read = lb.load(tmp_path / "m")[1]
    assert same(read, tree)
    assert isinstance(read.params["q"], QTensor)
    assert list(read.params) == ["b", "a/b", "a", "q"]
    assert list(read.params["a"]["d"]) == [1, 0]


def test_a_process_without_the_quantizer_runs_it(tmp_path):
    """The model was trained with a quantizer that only this process has."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        import dataclasses
        from lowbit.quantizers.rtn import RTN

        @dataclasses.dataclass(frozen=True)
        class Mine(RTN):
            pass
        """)
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import mine  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(tmp_path))
    base = lb.rtn("w4,a8")
    mine_for = lb.Quantizers(*(mine.Mine(**vars(q)) for q in (base.weight, base.input)))
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_t(3.0, (48, 20)), jnp.float32), "b": jnp.arange(20.0)}
    x = jnp.asarray(rng.normal(size=(5, 48)), jnp.float32)
    plan = lb.bind(model, {"**": mine_for}, params, x)
    qparams = lb.pack(plan, params, lb.init(model, plan, params, x))
    want = lb.execute(model, plan)(qparams, x)
    lb.save(tmp_path / "m.lowbit", plan, qparams)
    np.save(tmp_path / "x.npy", x)
    script = """
        import sys, numpy as np, jax, lowbit as lb
        def model(p, x): return jax.nn.relu(x @ p["w"] + p["b"])
        plan, qparams = lb.load(sys.argv[1] + "/m.lowbit")
        np.save(sys.argv[1] + "/y.npy", lb.execute(model, plan)(qparams, np.load(sys.argv[1] + "/x.npy")))
        try:
            import mine
        except ImportError:
            print("no mine here")
    """
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no mine here" in out.stdout
    assert np.load(tmp_path / "y.npy").tobytes() == np.asarray(want).tobytes()


def model(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"])


def small():
    params, x = {"w": jnp.linspace(-1.0, 1.0, 24).reshape(6, 4), "b": jnp.ones(4)}, jnp.ones((2, 6))
    plan = lb.bind(model, {"**": "w4,a8"}, params, x)
    return plan, lb.pack(plan, params, lb.init(model, plan, params, x))


def test_an_altered_byte_or_a_truncation_is_refused(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    lb.save(good, *small())
    content = good.read_bytes()
    for i in [*range(120), *range(120, len(content), 9)]:
        bad.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(ValueError, match=r"altered|truncated|not a|after its end|newer lowbit"):
            lb.load(bad)
    for length in [*range(12), *range(12, len(content), 29)]:
        bad.write_bytes(content[:length])
        with pytest.raises(ValueError, match="truncated"):
            lb.load(bad)
    bad.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="after its end"):
        lb.load(bad)


def rewritten(path, change) -> None:
    """Writes a file whose card was changed and whose checksum is right again: only its content is wrong."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    card = json.loads(header["__metadata__"]["lowbit"])
    change(card)
    card["sha256"] = "0" * 64
    header["__metadata__"]["lowbit"] = json.dumps(card, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    content = len(text).to_bytes(8, "little") + text + content[8 + length :]
    digest = files.hashlib.sha256(content).hexdigest()
    path.write_bytes(content.replace(files._mark("0" * 64), files._mark(digest)))


CHANGES = {
    "newer": (lambda card: card.update(version=files.VERSION + 1), "version 2 .*lowbit 0.2.0 wrote; .*newer lowbit"),
    "newer, by another": (
        lambda card: card.update(version=9, writer="2.5"),
        "version 9 .*lowbit 2.5 wrote; .*newer lowbit",
    ),
    "another's": (
        lambda card: card.update(writer="0.0.9", tree={}),
        "KeyError: 'params'; lowbit 0.0.9 wrote it: load it",
    ),
    "other": (lambda card: card.update(format="other"), "not a lowbit checkpoint"),
    "no tree": (lambda card: card.pop("tree"), "not a valid lowbit checkpoint"),
    "lost array": (lambda card: card["tree"]["params"]["dict"][0].__setitem__(1, "gone"), "gone"),
    "odd node": (lambda card: card["tree"].update(params={"pickle": "x"}), "no 'pickle' nodes"),
    "plan of the future": (lambda card: card.update(plan='{"version":99}'), "version 99"),
    "plan without rows": (lambda card: card.update(plan='{"version":1}'), "not a valid lowbit checkpoint"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_card_is_one_clear_error(tmp_path, name):
    change, message = CHANGES[name]
    path = tmp_path / "m"
    lb.save(path, *small())
    rewritten(path, lambda card: None)
    lb.load(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=message):
        lb.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file, not ours", b"\x80\x04\x95pickle", b"{}", b"\0" * 64])
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ValueError, match=r"not a lowbit checkpoint|truncated"):
        lb.load(tmp_path / "m")


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path):
    text = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  '
    (tmp_path / "m").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with safetensors.safe_open(tmp_path / "m", "numpy") as file:
        assert list(file.keys()) == ["w"]
    with pytest.raises(ValueError, match="lacks lowbit's metadata"):
        lb.load(tmp_path / "m")


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "m"
    plan, qparams = small()
    lb.save(path, plan, qparams)
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        lb.save(path, plan, qparams)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]


def test_wrong_types(tmp_path):
    plan, qparams = small()
    save, load = inspect.unwrap(lb.save), inspect.unwrap(lb.load)  # what a user gets, whose types nobody checks
    path = tmp_path / "m"
    with pytest.raises(TypeError, match="plan must be a Plan"):
        save(path, qparams, plan)
    with pytest.raises(TypeError, match=r"lowbit\.pack"):
        save(path, plan, {"w": jnp.ones(3)})
    with pytest.raises(TypeError, match="path"):
        save(3, plan, qparams)
    with pytest.raises(TypeError, match="path"):
        load(None)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    for leaf, message in ((jax.random.key(0), "key"), (object(), "params/odd is a object"), ({1.5: 2}, "1.5")):
        with pytest.raises(TypeError, match=message):
            save(path, plan, lb.QParams({"odd": leaf}, {}))
    with pytest.raises(TypeError, match="tracer"):
        jax.jit(lambda q: save(path, plan, q))(qparams)
    assert not path.exists()


def test_a_format_of_ones_own_is_refused_when_saving(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Odd(Integer):
        @property
        def high(self) -> float:
            return 5.0

    plan, qparams = small()
    weight = qparams.params["w"]
    mine = dataclasses.replace(weight, spec=dataclasses.replace(weight.spec, format=Odd(4)))
    with pytest.raises(ValueError, match="does not read back"):
        lb.save(tmp_path / "m", plan, lb.QParams({"w": mine}, {}))


def test_float64_is_refused_rather_than_rounded(tmp_path):
    plan, _ = small()
    lb.save(tmp_path / "m", plan, lb.QParams({"x": np.ones(3)}, {}))
    with pytest.raises(ValueError, match="jax_enable_x64"):
        lb.load(tmp_path / "m")
