"""Rule text: what parses, and where errors point."""

import pytest

from lowbit.core.paths import common_prefix, is_match, leaf_path, nearest
from lowbit.core.text import parse
from lowbit.formats.lookup import format_named, format_words, spec_from_text, specs


def caret(error):
    """The character that the error points at."""
    _, text, arrow = str(error.value).split("\n")
    return text[arrow.index("^")] if arrow.index("^") < len(text) else "end"


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("x4", "x", "expected 'w'"),
        ("w", "end", "expected a format"),
        ("w4/", "end", "expected an option"),
        ("w4/g1", "g", "at least 2"),
        ("w4/grop", "g", "unknown option 'grop'"),
        ("w4/g32/g32", "g", "only one of"),
        ("w4/sym/affine", "w", "exclude"),
        ("w4/sym/sym", "s", "given twice"),
        ("w4/t0x4", "t", "positive sides"),
        ("w4/bfloat16/e8m0", "w", "only one scale dtype"),
        ("w4,w8", "w", "one w part"),
        ("w4,,a8", ",", "expected 'w'"),
        ("w4 ,a8", " ", "expected '/'"),
        ("w9", "9", "1 to 8 or 16"),
        ("wint1/narrow", "i", "one level left"),
        ("wnf5", "n", "unknown format"),
        ("wnf4/affine", "n", "only integer formats"),
        ("wnf4/narrow", "n", "narrow is for integer"),
        ("wmxfp6", "m", "two kinds"),
        ("wmxfp4/g16", "m", "fixes its block"),
        ("w4/dynamic", "4", "for inputs"),
        ("wlut2_zz", "l", "hexadecimal"),
    ],
)
def test_errors_point_at_the_character(text, at, says):
    with pytest.raises(ValueError, match=says) as error:
        specs(text)
    assert caret(error) == at


def test_a_text_is_a_string():
    with pytest.raises(TypeError):
        parse(4)  # pyright: ignore[reportArgumentType]


def test_short_and_long_forms():
    assert specs("w4a8") == specs("w4,a8")
    weight, inputs = specs("w4/g32,a8/sym")
    assert (weight.text, inputs.text) == ("int4/g32/sym", "int8/tensor/sym")
    assert specs("aint16")[1].text == "int16/tensor/sym"
    assert specs("a8/dynamic")[1].text == "int8/channel/sym/dynamic"


def test_block_formats_are_written_out():
    assert spec_from_text("mxfp4", is_weight=True).text == "fp4_e2m1/g32/sym/e8m0"
    assert spec_from_text("mxfp8_e4m3", is_weight=False).dynamic
    nvfp4 = spec_from_text("nvfp4", is_weight=True)
    assert nvfp4.scale.spec.text == "fp8_e4m3/tensor/sym"
    assert spec_from_text("nf4/g64/dq", is_weight=True).scale.spec.text == "uint8/g256/sym"


@pytest.mark.parametrize("word", format_words())
def test_every_word_parses_back(word):
    for is_weight in (True, False):
        spec = spec_from_text(word, is_weight=is_weight)
        assert spec_from_text(spec.text, is_weight=is_weight) == spec
        assert format_named(spec.format.name) == spec.format


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("**", "a/b/c", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "a/b/kernel", True),
        ("**/kernel", "a/b/kernels", False),
        ("a/*/c", "a/b/c", True),
        ("a/*/c", "a/b/b/c", False),
        ("a/**/c", "a/b/b/c", True),
        ("a/**/c", "a/c", True),
        ("layer_?/w", "layer_1/w", True),
        ("layer_?/w", "layer_10/w", False),
        ("a.b", "axb", False),
        ("[ab]", "a", False),
    ],
)
def test_globs(glob, path, expected):
    assert is_match(glob, path) == expected


def test_paths():
    import jax

    keys = [jax.tree_util.DictKey("params"), jax.tree_util.DictKey("head"), jax.tree_util.GetAttrKey("value")]
    assert leaf_path(keys) == "head"
    assert common_prefix(["a/b/c", "a/b/d", "a/x"]) == "a"
    assert common_prefix([]) == ""
    assert nearest("heda/kernel", ["body/bias", "head/kernel"])[0] == "head/kernel"
