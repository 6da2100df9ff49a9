"""`lowbit formats`: the table, and what a wrong name gets."""

from lowbit.cli import main
from lowbit.formats.lookup import format_words


def test_some_formats(capsys):
    assert main(["formats", "nf4", "int4/g32/bfloat16"]) == 0
    head, _, nf4, int4 = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["format", "spec", "bits"]
    assert nf4.split()[:4] == ["nf4", "nf4/g128/sym", "4.25", "16"]
    assert int4.split()[1:4] == ["int4/g32/sym/bfloat16", "4.5", "16"]
    assert abs(float(nf4.split()[6]) - 20.39) < 0.05  # algorithms' table for groups of 128, sampled
    assert nf4.split()[8] == "20.04"


def test_wrong_names_get_the_nearest(capsys):
    for word, near in (("nf5", "nf4"), ("int44", "int4"), ("mxfp6", "mxfp6_e2m3")):
        assert main(["formats", word]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"lowbit: unknown format {word!r}; nearest: ")
        named = line.split("nearest: ")[1].split(";")[0].split(", ")
        assert near in named
        assert set(named) <= set(format_words())
    assert main(["formats", "nf4/affine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "only integer formats can be affine, got nf4" in line
