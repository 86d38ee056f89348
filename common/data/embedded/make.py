"""Makes `fashion_mnist.npz` from the four idx files of Fashion-MNIST: the same input gives the same bytes.

python common/data/embedded/make.py [FOLDER_OF_IDX_FILES]
"""

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
OUT = Path(__file__).parent / "fashion_mnist.npz"
PER_CLASS = 2000
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The uint8 array of a gzipped idx file: two zero bytes, type 8, the number of dimensions, the dimensions."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an idx file of bytes: take the original files of Fashion-MNIST")
    shape = np.frombuffer(raw, ">u4", raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape.astype(int))


def build(folder: Path, out: Path, per_class: int = PER_CLASS) -> None:
    """Write the first `per_class` training images of each class, in the order of the source."""
    x, y = (read_idx(folder / f"train-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    chosen = np.sort(np.concatenate([np.flatnonzero(y == label)[:per_class] for label in range(len(NAMES))]))
    with zipfile.ZipFile(out, "w") as archive:
        for key, value in (("x", x[chosen]), ("y", y[chosen]), ("names", np.array(NAMES))):
            member = zipfile.ZipInfo(f"{key}.npy")  # its date is fixed: 1980
            member.compress_type = zipfile.ZIP_LZMA
            member.create_system = 3  # the same on every system
            member.external_attr = 0o644 << 16
            raw = io.BytesIO()
            np.save(raw, value, allow_pickle=False)
            archive.writestr(member, raw.getvalue())


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN, OUT)
    print(f"{OUT}: {OUT.stat().st_size} bytes")
