"""Read images: the embedded data set, `.npz` files, folders of class folders, torchvision, users' own functions.

Files of users are never unpickled (torchvision unpickles CIFAR, after it has compared the checksum). Every broken rule
has one message: the file, the rule and what to do about it.
"""

import os
import zipfile
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedcaptor.common.assets import asset
from fedcaptor.common.errors import DataError
from fedcaptor.common.plugins import is_own, resolve

EMBEDDED = asset("common/data/embedded/fashion_mnist.npz")
TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")
SPLITS = ("train", "validation", "test")
KEYS = ("x", "y", "names", "owner", "split", "synthetic")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ["PNG", "JPEG", "BMP", "WEBP"]  # Pillow's decoders that a file can reach, whatever its name
MAX_PIXELS = 1 << 25
"""Most pixels that are decoded of one image file: 96 MiB of colours."""
MAX_BYTES = 8 << 30
MAX_CLASSES = 65_536
_NUMPYS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_DEFLATED = 1032  # bytes that one byte of DEFLATE gives at most


@dataclass(frozen=True)
class Dataset:
    """Hold images x [N, H, W, C] uint8 with C in {1, 3}, labels y [N] int64, and one name per class.

    `owner` [N] int64 is the phone that holds an image, `split` [N] one of train, validation, test; None: not given.
    `synthetic`: they are no photos, but made by a network (`server.synthesis`).
    """

    name: str
    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    names: tuple[str, ...]
    owner: NDArray[np.int64] | None = None
    split: NDArray[np.str_] | None = None
    synthetic: bool = False


def load(source: str) -> Dataset:
    """Load the data set that `source` names: `embedded`, a `.npz` file, a folder, `torchvision:NAME`, or what a user's
    own `package.module:function` returns. Raises DataError on one that cannot be used.
    """
    if source == "embedded":
        return _npz(EMBEDDED, "embedded", (zipfile.ZIP_LZMA,))
    if source.startswith("torchvision:"):
        return _torchvision(source, source.removeprefix("torchvision:"))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() != ".npz":
        if is_own(source):
            return _own(source)
        known = "'embedded', a .npz file, a folder of class folders, torchvision:NAME or package.module:function"
        raise DataError(f"{source!r} is no data source: give {known}")
    return _npz(path, path.name)


def _own(source: str) -> Dataset:
    """Return what the user's function gives, checked as a file would be."""
    found = resolve(source, "data source", "'embedded', a .npz file, a folder of class folders", DataError)()
    kind = type(found).__name__
    _need(isinstance(found, Dataset), source, f"gave a {kind}", "return a fedcaptor.Dataset of x, y and names")
    arrays = {key: np.asarray(value) for key in KEYS if (value := getattr(found, key)) is not None}
    return _dataset(found.name, source, arrays)


def _need(holds: object, where: object, rule: str, remedy: str) -> None:
    if not holds:
        raise DataError(f"{where}: {rule}: {remedy}")


def _bounded(size: int, where: object) -> None:
    rule = f"the data takes {size / 2**30:.1f} GiB, at most {MAX_BYTES >> 30} GiB are read"
    _need(size <= MAX_BYTES, where, rule, "take fewer or smaller images")


def _dataset(name: str, where: object, arrays: dict[str, NDArray]) -> Dataset:
    """Check arrays and make the data set; `arrays` has x, y and possibly the other keys."""
    x, count = _images(where, arrays["x"]), len(arrays["x"])
    y = _integers(where, "y", arrays["y"], count)
    owner = _integers(where, "owner", arrays["owner"], count) if "owner" in arrays else None
    names = _names(where, arrays.get("names"), int(y.max()))
    split = arrays.get("split")
    if split is not None:
        _texts(where, "split", split)
        _same_length(where, "split", split, count)
        unknown = sorted(set(split.tolist()) - set(SPLITS))
        rule = f"split holds {unknown[0][:40]!r}" if unknown else ""
        _need(not unknown, where, rule, "use train, validation or test")
    synthetic = arrays.get("synthetic", np.False_)
    good = synthetic.dtype == np.bool_ and synthetic.shape == ()
    _need(good, where, f"synthetic is {synthetic.dtype} {list(synthetic.shape)}", "store one truth value")
    return Dataset(name, x, y, names, owner, split, bool(synthetic))


def _images(where: object, x: NDArray) -> NDArray[np.uint8]:
    remedy = "store images as uint8 of 0..255, [N, H, W] or [N, H, W, C] with 1 or 3 channels last"
    _need(x.dtype == np.uint8, where, f"x is {x.dtype}, must be uint8", remedy)
    fits = x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))
    _need(fits, where, f"x has shape {list(x.shape)}", remedy)
    _need(x.size, where, f"x is empty, its shape is {list(x.shape)}", "store at least one image")
    return np.ascontiguousarray(x.reshape(*x.shape[:3], -1))


def _integers(where: object, key: str, value: NDArray, count: int) -> NDArray[np.int64]:
    good = value.dtype.kind in "iu" and value.ndim == 1
    _need(good, where, f"{key} is {value.dtype} {list(value.shape)}", "store one integer per image, [N]")
    _same_length(where, key, value, count)
    low, high = int(value.min()), int(value.max())
    rule = f"{key} holds {low if low < 0 else high}"
    _need(low >= 0 and high < 2**63, where, rule, "number from 0")
    return value.astype(np.int64)


def _names(where: object, names: NDArray | None, highest: int) -> tuple[str, ...]:
    _need(highest < MAX_CLASSES, where, f"y holds {highest}", f"number classes from 0, {MAX_CLASSES} at most")
    if names is None:
        return tuple(str(c) for c in range(highest + 1))
    _texts(where, "names", names)
    rule = f"y holds {highest} but names has {len(names)} entries"
    _need(highest < len(names) <= MAX_CLASSES, where, rule, "store one name per class, in the order of the labels")
    texts = tuple(str(n) for n in names)
    _need(all(texts) and len(set(texts)) == len(texts), where, "names repeat or are blank", "name each class once")
    return texts


def _texts(where: object, key: str, value: NDArray) -> None:
    good = value.dtype.kind == "U" and value.ndim == 1
    _need(good, where, f"{key} is {value.dtype} {list(value.shape)}", "store a one-dimensional array of strings")


def _same_length(where: object, key: str, value: NDArray, count: int) -> None:
    _need(len(value) == count, where, f"{key} has {len(value)} entries, x {count} images", "store one per image")


def _npz(path: Path, name: str, methods: Container[int] = _NUMPYS) -> Dataset:
    """Read a `.npz`, compressed as numpy does: zipfile bounds what it takes out of no other compression."""
    _need(path.exists(), path, "the file does not exist", "correct the path")
    try:
        with zipfile.ZipFile(path) as archive:
            strange = [info.filename for info in archive.infolist() if info.compress_type not in methods]
            rule = f"{strange[0][:40]!r} is compressed by another method than numpy's" if strange else ""
            _need(not strange, path, rule, "write it with numpy.savez_compressed")
            arrays = _members(path, archive)
    except DataError:
        raise
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a zip archive, or damaged ({error}): write it with numpy.savez") from None
    except Exception as error:  # zipfile and numpy raise whatever a damaged file leads them to
        raise DataError(
            f"{path}: cannot be read ({error}): check its permissions or write it again with numpy.savez"
        ) from None
    return _dataset(name, path, arrays)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, NDArray]:
    """Read the known arrays of a `.npz`; headers are checked before memory is taken."""
    stored = archive.namelist()
    unknown = [n for n in stored if n not in {f"{k}.npy" for k in KEYS}]
    rule = f"holds {unknown[0][:40]!r}" if unknown else ""
    _need(not unknown, path, rule, f"the keys are {', '.join(KEYS)}: rename or leave out others")
    _need(len(set(stored)) == len(stored), path, "holds a key twice", "write it with numpy.savez")
    for key in ("x", "y"):
        _need(f"{key}.npy" in stored, path, f"key {key!r} is missing", "store images as x and labels as y")
    keys = [k for k in KEYS if f"{k}.npy" in stored]
    total = 0
    for key in keys:
        with archive.open(f"{key}.npy") as file:
            total += _declared_bytes(path, key, file)
    _bounded(total, path)
    held = path.stat().st_size
    rule = f"its arrays would take {total:,} bytes, more than {held:,} bytes of a file can hold"
    _need(total <= _MOST_DEFLATED * held, path, rule, "write it with numpy.savez")
    arrays = {}
    for key in keys:
        with archive.open(f"{key}.npy") as file:
            arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
            rest = file.read(1)  # at the end of the member zipfile compares its checksum
            _need(not rest, path, f"{key} has bytes after its array", "write it with numpy.savez")
    return arrays


def _declared_bytes(path: Path, key: str, file: IO[bytes]) -> int:
    version = np.lib.format.read_magic(file)  # the header of a later one may have four gigabytes
    _need(version == (1, 0), path, f"{key} has .npy version {version}", "store plain numpy arrays")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    _need(not dtype.hasobject, path, f"{key} holds Python objects, which are never unpickled", "store plain arrays")
    _need(all(n >= 0 for n in shape), path, f"{key} has shape {list(shape)}", "write it with numpy.savez")
    size = dtype.itemsize
    for n in shape:
        size *= n
    return size


def _folder(path: Path) -> Dataset:
    """Read one class from each sub-folder, in the order of their names; all images have one size."""
    classes = [entry for entry in entries(path) if entry.is_dir()]
    _need(classes, path, "has no class folders", "put the images of each class into a folder of its own")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        images = [entry for entry in entries(folder) if entry.suffix.lower() in SUFFIXES]
        _need(images, folder, "a class folder without images", f"add {', '.join(SUFFIXES)} files or remove the folder")
        files += images
        labels += [label] * len(images)
    x = decode(path, files)
    names = np.array([folder.name for folder in classes])
    return _dataset(path.resolve().name, path, {"x": x, "y": np.array(labels), "names": names})


def entries(folder: Path) -> list[Path]:
    """List what a folder holds, sorted, without hidden files."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}): check its permissions") from None


def decode(path: Path, files: list[Path]) -> NDArray[np.uint8]:
    """Decode image files to uint8 [N, H, W, C]: grey when every file is grey, otherwise RGB.

    Sizes are checked before pixels are read. Raises DataError on a file that cannot be read or has another size.
    """
    heads = [_open(file, partial(_head, file)) for file in files]
    size, _ = heads[0]
    for file, (own, mode) in zip(files, heads, strict=True):
        rule = f"is {own[0]} × {own[1]}, {files[0].name} is {size[0]} × {size[1]}"
        _need(own == size, file, rule, "scale all images to one size")
        _eight_bits(file, mode)
    shape = (len(files), size[1], size[0], 1 if all(mode == "L" for _, mode in heads) else 3)
    _bounded(int(np.prod(shape, dtype=object)), path)
    x = np.empty(shape, np.uint8)
    for row, file in zip(x, files, strict=True):
        row[:] = decode_one(file, shape[1:])
    return x


def decode_one(file: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode an image file to uint8 of `shape` (H, W, C), grey or RGB.

    Raises DataError on one that cannot be read or has another size, before its pixels are read.
    """
    height, width, channels = shape

    def pixels(image: Image.Image) -> NDArray[np.uint8]:
        rule = f"is {image.size[0]} × {image.size[1]}, must be {width} × {height}"
        _need(image.size == (width, height), file, rule, "scale it")
        _eight_bits(file, image.mode)
        return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(shape)

    return _open(file, pixels)


def _eight_bits(file: Path, mode: str) -> None:
    _need(mode[0] not in "IF", file, f"has pixels of mode {mode}", "convert it to 8 bits per channel")


def photo(file: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode a photo of any size to uint8 of `shape` (H, W, C): turned upright as its EXIF says, cropped to the shape's
    proportions around its middle, and scaled.

    A JPEG is decoded at a fraction of its size where that is enough. Raises DataError on a file that cannot be read, or
    that would take more than `MAX_PIXELS`.
    """
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"

    def pixels(image: Image.Image) -> NDArray[np.uint8]:
        _eight_bits(file, image.mode)
        image.draft(mode, (2 * width, 2 * height))
        _few_pixels(file, image)
        upright = ImageOps.exif_transpose(image)
        return np.asarray(ImageOps.fit(upright.convert(mode), (width, height))).reshape(shape)

    return _open(file, pixels)


def _head(file: Path, image: Image.Image) -> tuple[tuple[int, int], str]:
    _few_pixels(file, image)
    return image.size, image.mode


def _few_pixels(file: Path, image: Image.Image) -> None:
    count = image.size[0] * image.size[1]
    _need(count <= MAX_PIXELS, file, f"has {count:,} pixels, the bound is {MAX_PIXELS:,}", "scale it down")


def _open(file: Path, use: Callable[[Image.Image], Any]) -> Any:
    try:
        with Image.open(file, formats=[*FORMATS, *_heif()]) as image:
            return use(image)
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise DataError(f"{file}: cannot be read as an image ({error}): replace or remove it") from None


@cache
def _heif() -> list[str]:
    """Return the name of the format of iPhones' photos, where a library that decodes it is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return []
    register_heif_opener()
    return ["HEIF"]


class _Part(Protocol):
    """Describe what the listed torchvision data sets have in common."""

    data: Any
    targets: Any


def cache_folder() -> Path:
    """Return the folder of downloads: FEDCAPTOR_CACHE, or ~/.cache/fedcaptor."""
    return Path(os.environ.get("FEDCAPTOR_CACHE") or Path.home() / ".cache" / "fedcaptor")


def _torchvision(source: str, name: str) -> Dataset:
    """Load train and test parts, one after the other. torchvision compares the files with its checksums."""
    _need(name in TORCHVISION, source, "is not offered", f"choose from {', '.join(TORCHVISION)} or write a .npz file")
    import http.client

    from torchvision import datasets

    root = cache_folder() / "torchvision"
    try:
        root.mkdir(parents=True, exist_ok=True)
        parts: list[_Part] = [getattr(datasets, name)(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        remedy = f"connect once, copy {root} from a machine that has it, or use 'embedded' or a .npz file"
        reason = " ".join(str(error).split())  # torchvision's has several lines
        raise DataError(f"{source}: cannot be downloaded to {root} ({reason}): {remedy}") from None
    counts = [len(part.data) for part in parts]
    arrays: dict[str, NDArray] = {
        "x": np.concatenate([np.asarray(part.data) for part in parts]),
        "y": np.concatenate([np.asarray(part.targets, np.int64) for part in parts]),
        "split": np.repeat(["train", "test"], counts),
    }
    classes = getattr(parts[0], "classes", None)
    if classes is not None:
        arrays["names"] = np.array(classes)
    return _dataset(source, source, arrays)
