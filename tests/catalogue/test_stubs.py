"""The code of the catalogue's messages is what its .proto makes."""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc

from fedcaptor.common.catalogue.bytestream_pb2 import ReadRequest, ReadResponse

FOLDER = Path(__file__).parents[2] / "common" / "catalogue"
NAME = "fedcaptor/common/catalogue"


def test_the_stubs_are_up_to_date(tmp_path: Path) -> None:
    out = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["protoc", f"-I{NAME}={FOLDER}", *out, f"{NAME}/bytestream.proto"]) == 0
    for name in ("bytestream_pb2.py", "bytestream_pb2.pyi"):
        assert (tmp_path / NAME / name).read_text() == (FOLDER / name).read_text(), "run `make stubs`"


def test_the_wire_is_that_of_google_bytestream() -> None:
    """Bytes as googleapis numbers them: resource_name 1, read_offset 2, read_limit 3, data 10."""
    assert (
        ReadRequest(resource_name="a", read_offset=2, read_limit=3).SerializeToString() == b"\x0a\x01a\x10\x02\x18\x03"
    )
    assert ReadResponse(data=b"x").SerializeToString() == b"\x52\x01x"
