"""The language model's pieces beside arithmetic written out: GGUF blocks, attention with rotary positions, the table."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import gguf, smollm2
from experiments.post_training_language_table import markdown


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def write(path, tensors: list[tuple[str, tuple[int, ...], int, bytes]]) -> None:
    """A file as the format's description has it: fastest axis first, tensors at multiples of 32."""
    facts = text("general.name") + struct.pack("<I", 8) + text("small")
    facts += text("list") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, -2, 3)
    places, data = b"", b""
    for name, shape, kind, content in tensors:
        places += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        places += struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2) + facts + places
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)


def test_blocks_are_read_as_the_format_says(tmp_path):
    rng = np.random.default_rng(0)
    nibbles, q8 = rng.integers(0, 16, (4, 32)), rng.integers(-127, 128, (2, 32))
    plain = rng.normal(size=(3, 5)).astype(np.float32)
    q4 = b"".join(
        struct.pack("<2e", 0.5 + i, -1.25) + bytes(int(n[j]) | int(n[j + 16]) << 4 for j in range(16))
        for i, n in enumerate(nibbles)
    )
    q8_0 = b"".join(struct.pack("<e32b", 0.25, *(int(x) for x in row)) for row in q8)
    write(tmp_path / "a.gguf", [("w", (2, 64), 3, q4), ("e", (2, 32), 8, q8_0), ("f", (3, 5), 0, plain.tobytes())])
    found = gguf.read_gguf(tmp_path / "a.gguf")
    assert found.facts == {"general.name": "small", "list": [1, -2, 3]}
    want = (nibbles * (0.5 + np.arange(4))[:, None] - 1.25).reshape(2, 64)
    np.testing.assert_array_equal(found.tensor("w"), want)
    np.testing.assert_array_equal(found.tensor("e"), q8 * 0.25)
    np.testing.assert_array_equal(found.tensor("f"), plain)


def test_other_files_and_blocks_are_refused(tmp_path):
    write(tmp_path / "a.gguf", [("w", (32,), 2, b"\0" * 18)])
    with pytest.raises(ValueError, match="w has the type 2"):
        gguf.read_gguf(tmp_path / "a.gguf").tensor("w")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + struct.pack("<I", 2) + b"\0" * 16)
    with pytest.raises(ValueError, match="no GGUF file of version 3"):
        gguf.read_gguf(tmp_path / "b.gguf")


def test_a_layer_is_llamas_written_out(monkeypatch):
    """One layer in float64, head by head, positions turned in neighbouring pairs as files have them; the reader moves rows into halves."""
    rng, length = np.random.default_rng(1), 7
    wide, inner, vocabulary = 576, 1536, 40
    names = {"attn_q": (576, wide), "attn_k": (192, wide), "attn_v": (192, wide), "attn_output": (wide, 576)}
    names |= {"ffn_gate": (inner, wide), "ffn_up": (inner, wide), "ffn_down": (wide, inner)}
    file = {f"blk.0.{k}.weight": rng.normal(size=s).astype(np.float32) / 16 for k, s in names.items()}
    file |= {f"blk.0.{k}.weight": rng.normal(size=wide).astype(np.float32) for k in ("attn_norm", "ffn_norm")}
    file |= {"token_embd.weight": rng.normal(size=(vocabulary, wide)).astype(np.float32)}
    file |= {"output_norm.weight": rng.normal(size=wide).astype(np.float32)}

    class File:
        def tensor(self, name):
            return file[name]

    monkeypatch.setattr(smollm2, "_file", File)
    monkeypatch.setattr(smollm2, "LAYERS", 1)
    model = smollm2.load()
    ids = jnp.asarray(rng.integers(0, vocabulary, (1, length)), jnp.int32)

    w = {k.removeprefix("blk.0.").removesuffix(".weight"): v.astype(np.float64) for k, v in file.items()}

    def norm(x, gain):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * gain

    def turned(x, at):
        found = np.empty(64)
        for i in range(32):
            angle = at * 100000.0 ** (-2 * i / 64)
            a, b = x[2 * i], x[2 * i + 1]
            found[2 * i], found[2 * i + 1] = (
                a * np.cos(angle) - b * np.sin(angle),
                a * np.sin(angle) + b * np.cos(angle),
            )
        return found

    h = w["token_embd"][ids[0]]
    x = norm(h, w["attn_norm"])
    q, k, v = (x @ w[name].T for name in ("attn_q", "attn_k", "attn_v"))
    out = np.zeros((length, 576))
    for head in range(9):
        own, shared = slice(64 * head, 64 * head + 64), slice(64 * (head // 3), 64 * (head // 3) + 64)
        for i in range(length):
            turns = np.array([turned(q[i, own], i) @ turned(k[j, shared], j) / 8 for j in range(i + 1)])
            p = np.exp(turns - np.max(turns))
            out[i, own] = (p / p.sum()) @ v[: i + 1, shared]
    h = h + out @ w["attn_output"].T
    x = norm(h, w["ffn_norm"])
    gate = x @ w["ffn_gate"].T
    h = h + (gate / (1 + np.exp(-gate)) * (x @ w["ffn_up"].T)) @ w["ffn_down"].T
    want = norm(h, w["output_norm"]) @ w["token_embd"].T
    got = np.asarray(smollm2.logits(model.params, {}, ids), np.float64)[0]
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    lost = np.log(np.sum(np.exp(want[:-1]), axis=1)) - want[np.arange(length - 1), ids[0, 1:]]
    np.testing.assert_allclose(model.fn(model.params, {}, ids)[0], lost, atol=1e-3)


def test_the_table_stars_what_is_at_most_the_bar():
    def piece(score):
        return {"score": score, "numbers": {"low": score - 5, "high": score + 5}, "bits_per_weight": 4.06}

    plan = {
        "name": "W4",
        "bar": 66,
        "asked": ["rtn", "gptq", "qep"],
        "recipes": {"rtn": piece(106.0), "gptq": piece(60.0)},
    }
    made = markdown({"networks": [{"title": "SmolLM2", "float": {"score": 49.84}, "plans": [plan]}]})
    row = "| W4 | 106.0 [101.0, 111.0], 4.06 bits | 60.0 [55.0, 65.0]*, 4.06 bits | - | not measured | 66 |"
    assert row in made
    assert "SmolLM2, float 49.8" in made
