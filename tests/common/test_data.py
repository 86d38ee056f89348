"""Sources and splits: what is stored arrives, every broken rule is named, no image is in two parts."""

import gzip
import io
import sys
import tracemalloc
import types
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedcaptor.common.data import source
from fedcaptor.common.data.embedded import make
from fedcaptor.common.data.source import EMBEDDED, Dataset, load
from fedcaptor.common.data.splits import POOL, pool, split
from fedcaptor.common.errors import DataError

X = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
Y = np.array([0, 1, 2, 0, 1, 2])


def saved(path, **arrays):
    np.savez_compressed(path, **arrays)
    return str(path)


def noise(n, seed=0, **keys):
    rng = np.random.default_rng(seed)
    return Dataset(
        "noise", rng.integers(0, 256, (n, 3, 4, 1), np.uint8), rng.integers(0, 3, n), ("a", "b", "c"), **keys
    )


def picture(path, size=(5, 4), mode="L", value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


# --- the embedded data set ---


@pytest.fixture(scope="module")
def embedded():
    return load("embedded")


@pytest.mark.slow
def test_embedded_is_balanced_and_named(embedded):
    assert embedded.x.shape == (20_000, 28, 28, 1)
    assert embedded.x.dtype == np.uint8
    assert embedded.y.dtype == np.int64
    assert np.bincount(embedded.y).tolist() == [2000] * 10
    assert embedded.names == tuple(make.NAMES)
    assert len(np.unique(embedded.x.reshape(len(embedded.x), -1), axis=0)) == len(embedded.x)


def test_embedded_ships_small_and_with_its_licence():
    files = [*EMBEDDED.parent.glob("*.*"), EMBEDDED.parent / "LICENSE"]
    assert sum(f.stat().st_size for f in files if f.is_file()) < 8_000_000
    assert "Zalando SE" in (EMBEDDED.parent / "LICENSE").read_text(encoding="utf-8")
    with np.load(EMBEDDED, allow_pickle=False) as file:  # an ordinary .npz
        assert set(file) == {"x", "y", "names"}


def test_embedded_has_every_class_in_every_part(embedded):
    parts = split(embedded)
    for indices in (*parts.values(), *pool(embedded, parts["phones"]).values()):
        assert np.bincount(embedded.y[indices], minlength=10).min() > 100


def test_make_gives_the_same_bytes_twice(tmp_path, monkeypatch):
    y = np.tile(np.arange(10, dtype=np.uint8), 6)
    x = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    for name, array in (("images-idx3", x), ("labels-idx1", y)):
        raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(raw))
    outs = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for out in outs:
        make.build(tmp_path, out, per_class=4)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    monkeypatch.setattr(source, "EMBEDDED", outs[0])
    data = load("embedded")
    np.testing.assert_array_equal(data.x[..., 0], x[:40])
    np.testing.assert_array_equal(data.y, y[:40])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(SystemExit, match="not an idx file"):
        make.build(tmp_path, outs[0])


# --- .npz ---


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 4, 5, 1), (6, 4, 5, 3)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path, shape, save):
    x = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    owner, parts = np.arange(6, dtype=np.uint16), np.array(["train", "test", "validation"] * 2)
    save(
        tmp_path / "d.npz",
        x=np.asfortranarray(x),
        y=Y.astype(np.uint8),
        names=["a", "b", "ç"],
        owner=owner,
        split=parts,
    )
    data = load(str(tmp_path / "d.npz"))
    np.testing.assert_array_equal(data.x, x.reshape(6, 4, 5, -1))
    assert data.x.flags.c_contiguous
    np.testing.assert_array_equal(data.y, Y)
    np.testing.assert_array_equal(data.owner, owner)
    np.testing.assert_array_equal(data.split, parts)
    assert (data.y.dtype, data.owner.dtype) == (np.int64, np.int64)
    assert (data.name, data.names) == ("d.npz", ("a", "b", "ç"))


def test_npz_without_names_and_with_classes_that_have_no_image(tmp_path):
    data = load(saved(tmp_path / "d.npz", x=X, y=Y))
    assert (data.names, data.owner, data.split) == (("0", "1", "2"), None, None)
    assert load(saved(tmp_path / "e.npz", x=X, y=Y, names=list("abcd"))).names == tuple("abcd")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"x": None}, "key 'x' is missing"),
        ({"y": None}, "key 'y' is missing"),
        ({"spilt": Y}, r"holds 'spilt\.npy'.*rename"),
        ({"x": X.astype(np.float32)}, "x is float32, must be uint8"),
        ({"x": X[0]}, r"x has shape \[4, 5\]"),
        ({"x": np.zeros((6, 4, 5, 2), np.uint8)}, r"x has shape \[6, 4, 5, 2\]"),
        ({"x": np.zeros((6, 3, 4, 5), np.uint8)}, "channels last"),
        ({"x": X[:0], "y": Y[:0]}, "x is empty"),
        ({"x": X[:, :0]}, "x is empty"),
        ({"x": np.array([None] * 6)}, "never unpickled"),
        ({"y": np.array([{}] * 6)}, "never unpickled"),
        ({"y": Y.astype(float)}, "y is float64"),
        ({"y": Y[:, None]}, r"y is int64 \[6, 1\]"),
        ({"y": np.int64(3)}, r"y is int64 \[\]"),
        ({"y": Y[:5]}, "y has 5 entries, x 6 images"),
        ({"y": Y - 1}, "y holds -1: number from 0"),
        ({"y": Y.astype(np.uint64) + np.uint64(2**63)}, "y holds 9223372036854775810"),
        ({"y": Y * 10**9}, "y holds 2000000000"),
        ({"names": ["a", "b"]}, "y holds 2 but names has 2"),
        ({"names": ["a", "b", "a"]}, "names repeat"),
        ({"names": ["a", "b", ""]}, "names repeat or are blank"),
        ({"names": np.arange(3)}, "names is int64"),
        ({"names": np.array([["a", "b", "c"]])}, r"names is <U1 \[1, 3\]"),
        ({"names": np.array(["a", "b", None])}, "never unpickled"),
        ({"owner": Y[:5]}, "owner has 5 entries"),
        ({"owner": Y - 1}, "owner holds -1"),
        ({"owner": Y / 2}, "owner is float64"),
        ({"split": np.array(["train"] * 5 + ["tset"])}, "split holds 'tset'.*train, validation or test"),
        ({"split": np.array(["train"] * 5)}, "split has 5 entries"),
        ({"split": np.array([b"train"] * 6)}, r"split is \|S5"),
    ],
)
def test_npz_rules(tmp_path, changes, rule):
    arrays = {key: value for key, value in ({"x": X, "y": Y} | changes).items() if value is not None}
    path = saved(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=rf"bad\.npz: .*{rule}"):
        load(path)


def header(shape, descr="|u1"):
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"shape": shape, "fortran_order": False, "descr": descr})
    return raw.getvalue()


def plain(array):
    raw = io.BytesIO()
    np.save(raw, array)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ({"x.npy": header((1 << 20, 1 << 10, 1 << 10))}, "1024.0 GiB, at most 8 GiB"),
        ({"x.npy": header((1 << 62, 1 << 62, 4))}, "at most 8 GiB"),
        ({"x.npy": header((-1, 4, 5))}, "x has shape"),
        ({"x.npy": header((6, 4, 5)) + bytes(7)}, "cannot be read"),
        ({"x.npy": plain(X) + b"more"}, "x has bytes after its array"),
        ({"x.npy": header((1 << 10, 1 << 10, 1 << 10))}, "1,073,741,872 bytes, more than 498 bytes"),
        ({"x.npy": header((1,)).replace(b"(1,)", b"(" * 4)}, "cannot be read"),
        ({"x.npy": header((1,)).replace(b"|u1", b"9,9")}, "cannot be read"),
        ({"x.npy": plain(X)[:6] + b"\x02\x00\xff\xff\xff\xff" + bytes(99)}, r"version \(2, 0\)"),
        ({"x.npy": plain(X)[:6] + b"\x03\x00" + plain(X)[8:]}, r"version \(3, 0\)"),
        ({"x.npy": b"text"}, "cannot be read"),
        ({"x.npy": b""}, "cannot be read"),
        ({"x": plain(X)}, "holds 'x'"),
    ],
)
def test_members_that_lie(tmp_path, members, rule):
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in ({"y.npy": plain(Y)} | members).items():
            archive.writestr(name, raw)
    with pytest.raises(DataError, match=rf"bad\.npz: .*{rule}"):
        load(str(path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_key_that_is_stored_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        for name, array in (("x", X), ("y", Y), ("y", Y)):
            archive.writestr(f"{name}.npy", plain(array))
    with pytest.raises(DataError, match="holds a key twice"):
        load(str(tmp_path / "bad.npz"))


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "bad.npz"
    with pytest.raises(DataError, match="does not exist"):
        load(str(path))
    np.save(path.with_suffix(".npy"), X)
    path.with_suffix(".npy").rename(path)
    with pytest.raises(DataError, match="not a zip archive"):
        load(str(path))
    with pytest.raises(DataError, match="no data source: give 'embedded'"):
        load("fashion")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_small_file_that_expands_takes_no_memory(tmp_path, method):
    """A few kilobytes of 16 MB, of which zipfile would take all out at the first byte that is asked of it."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", plain(X) + bytes(16 << 20))
        archive.writestr("y.npy", plain(Y))
    assert path.stat().st_size < 5_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="compressed by another method than numpy's: write it with"):
            load(str(path))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_is_found(tmp_path, method):
    x = np.random.default_rng(2).integers(0, 256, (6, 40, 50), np.uint8)
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", plain(x))
        archive.writestr("y.npy", plain(Y))
    assert len(load(str(path)).y) == 6
    raw = bytearray(path.read_bytes())
    raw[6000] ^= 255
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"bad\.npz: (not a zip archive, or damaged|cannot be read)"):
        load(str(path))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = saved(tmp_path / "d.npz", x=X, y=Y)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(DataError, match=r"Permission denied.*check its permissions"):
        load(path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"Permission denied.*check its permissions"):
        load(str(tmp_path))


# --- folders ---


def test_a_grey_folder(tmp_path):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (3, 4, 5), np.uint8)
    for name, image in zip(("b/2.png", "a/1.bmp", "b/1.PNG"), images, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a" / ".hidden.png").write_text("no image")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    data = load(str(tmp_path))
    assert (data.name, data.names, data.y.tolist()) == (tmp_path.name, ("a", "b"), [0, 1, 1])
    np.testing.assert_array_equal(data.x[..., 0], images[[1, 2, 0]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1"])
def test_a_folder_with_colour_is_rgb(tmp_path, mode):
    picture(tmp_path / "a" / "grey.png")
    colour = Image.fromarray(np.random.default_rng(4).integers(0, 256, (4, 5, 3), np.uint8)).convert(mode)
    (tmp_path / "b").mkdir()
    colour.save(tmp_path / "b" / "colour.webp" if mode == "RGB" else tmp_path / "b" / "colour.png", lossless=True)
    data = load(str(tmp_path))
    assert data.x.shape == (2, 4, 5, 3)
    assert (data.x[0] == 7).all()
    np.testing.assert_array_equal(data.x[1], np.asarray(colour.convert("RGB")))


def test_folder_rules(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="has no class folders"):
        load(str(tmp_path))
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b: a class folder without images"):
        load(str(tmp_path))
    other = picture(tmp_path / "b" / "2.png", (4, 5))
    with pytest.raises(DataError, match=r"b/2\.png: is 4 × 5, 1\.png is 5 × 4: scale"):
        load(str(tmp_path))
    picture(other, mode="I;16")
    with pytest.raises(DataError, match=r"b/2\.png: has pixels of mode I;16: convert"):
        load(str(tmp_path))
    other.write_bytes(b"text")
    with pytest.raises(DataError, match=r"b/2\.png: cannot be read as an image"):
        load(str(tmp_path))
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (4, 5), np.uint8)).save(other)
    other.write_bytes(other.read_bytes()[:50])  # a header, but not all pixels
    with pytest.raises(DataError, match=r"b/2\.png: cannot be read as an image"):
        load(str(tmp_path))
    picture(other)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(DataError, match=r"1\.png: cannot be read as an image \(Image size"):
        load(str(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(source, "MAX_BYTES", 39)
    with pytest.raises(DataError, match="take fewer or smaller images"):
        load(str(tmp_path))


# --- torchvision, without network ---


def offered(monkeypatch, make_part):
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(CIFAR10=make_part)
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_torchvision_parts_keep_their_split(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCAPTOR_CACHE", str(tmp_path))

    def make_part(root, train, download):
        assert download
        assert Path(root).parent == tmp_path
        n = 4 if train else 2
        return types.SimpleNamespace(
            data=np.full((n, 4, 5, 3), n, np.uint8), targets=[0, 1] * (n // 2), classes=["a", "b"]
        )

    offered(monkeypatch, make_part)
    data = load("torchvision:CIFAR10")
    assert data.x[:, 0, 0, 0].tolist() == [4, 4, 4, 4, 2, 2]
    assert data.split.tolist() == ["train"] * 4 + ["test"] * 2
    assert (data.y.tolist(), data.names, data.name) == ([0, 1] * 3, ("a", "b"), "torchvision:CIFAR10")


def test_torchvision_without_class_names(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCAPTOR_CACHE", str(tmp_path))
    offered(monkeypatch, lambda *_, **__: types.SimpleNamespace(data=X, targets=Y.tolist()))
    data = load("torchvision:CIFAR10")
    assert (data.x.shape, data.names) == ((12, 4, 5, 1), ("0", "1", "2"))


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("Error\n downloading")])
def test_torchvision_without_network(tmp_path, monkeypatch, error):
    monkeypatch.setenv("FEDCAPTOR_CACHE", str(tmp_path))

    def make_part(*_, **__):
        raise error

    offered(monkeypatch, make_part)
    with pytest.raises(DataError, match=r"cannot be downloaded .*connect once, copy .*'embedded'"):
        load("torchvision:CIFAR10")
    with pytest.raises(DataError, match="is not offered: choose from CIFAR10"):
        load("torchvision:ImageNet")


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("FEDCAPTOR_CACHE", raising=False)
    assert source.cache_folder() == Path.home() / ".cache" / "fedcaptor"


# --- splits ---


def contents(data, indices):
    return Counter(data.x[i].tobytes() for i in indices)


def all_parts(data):
    parts = split(data)
    assert list(parts) == ["base", "reference", "phones"]
    pooled = pool(data, parts["phones"])
    assert list(pooled) == ["use", "check", "test"]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(pooled.values()))), parts["phones"])
    for indices in (*parts.values(), *pooled.values()):
        assert indices.dtype == np.int64
        assert (np.diff(indices) > 0).all()
    return parts | pooled


def assert_disjoint(data, parts, names):
    seen = [set(contents(data, parts[name])) for name in names]
    assert sum(map(len, seen)) == len(set.union(*seen))


@given(seed=st.integers(0, 99), copies=st.integers(0, 80), keys=st.sampled_from(["", "train test", "train validation"]))
@settings(max_examples=30)
def test_parts_are_disjoint_and_do_not_depend_on_the_order(seed, copies, keys):
    data, rng = noise(300, seed), np.random.default_rng(seed)
    data.x[rng.integers(0, 300, copies)] = data.x[rng.integers(0, 300, copies)]
    if keys:
        data = replace(data, split=rng.choice(keys.split(), 300))
    order = rng.permutation(300)
    shuffled = replace(data, x=data.x[order], split=None if data.split is None else data.split[order])
    parts, again = all_parts(data), all_parts(shuffled)
    for name, indices in parts.items():
        np.testing.assert_array_equal(np.sort(order[again[name]]), indices)
    assert_disjoint(data, parts, ["base", "reference", "phones"])
    assert_disjoint(data, parts, ["use", "check", "test"])
    if not keys:
        assert sum(len(parts[name]) for name in ("base", "reference", "phones")) == 300


def test_shares():
    data = noise(20_000)
    parts = all_parts(data)
    for name, share in (("base", 0.45), ("reference", 0.1), ("phones", 0.45)):
        assert len(parts[name]) / 20_000 == pytest.approx(share, abs=0.015)
    for name, share in POOL.items():
        assert len(parts[name]) / len(parts["phones"]) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("counts", "shares"),
    [
        ({"train": 4000, "test": 1000}, {"base": 3600, "reference": 400, "phones": 1000}),
        ({"train": 4000, "validation": 700, "test": 1000}, {"base": 4000, "reference": 700, "phones": 1000}),
        ({"train": 4000, "validation": 700}, {"base": 2000, "reference": 700, "phones": 2000}),
        ({"train": 4000}, {"base": 1800, "reference": 400, "phones": 1800}),
    ],
)
def test_a_split_key_is_honoured(counts, shares):
    keys = np.repeat(list(counts), list(counts.values()))
    data = noise(len(keys), split=keys)
    parts = all_parts(data)
    for name, count in shares.items():
        assert len(parts[name]) == pytest.approx(count, abs=0 if count in (700, 1000, 4000) else 120)
    allowed = {"base": {"train"}, "reference": {"train", "validation"}, "phones": {"train", "test"}}
    for name, origins in allowed.items():
        assert set(keys[parts[name]]) <= origins


def test_a_copy_across_split_keys_stays_in_the_last_part_alone():
    data = noise(400, split=np.repeat(["train", "validation", "test"], [200, 100, 100]))
    data.x[:5] = data.x[200:205]  # train copies of validation
    data.x[5:9] = data.x[300:304]  # train copies of test
    data.x[210] = data.x[310]
    parts = split(data)
    np.testing.assert_array_equal(parts["base"], np.arange(9, 200))
    np.testing.assert_array_equal(parts["reference"], np.delete(np.arange(200, 300), 10))
    np.testing.assert_array_equal(parts["phones"], np.arange(300, 400))


def test_an_owner_does_not_change_the_split():
    data = noise(500)
    for name, indices in split(replace(data, owner=data.y)).items():
        np.testing.assert_array_equal(indices, split(data)[name])


def test_parts_that_get_nothing_are_named():
    same = noise(50)
    same.x[:] = 1
    with pytest.raises(DataError, match=r"noise: part '\w+' gets none of 50 images: give more"):
        split(same)
    with pytest.raises(DataError, match="part 'base' gets none"):
        split(noise(50, split=np.array(["test", "validation"] * 25)))
    data = noise(200)
    with pytest.raises(DataError, match=r"part '\w+' gets none"):
        pool(data, np.array([3, 4]))
