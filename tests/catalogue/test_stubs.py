"""The code of gRPC messages is what their .proto makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc_tools import protoc

from fedcaptor.common.catalogue.bytestream_pb2 import ReadRequest, ReadResponse

FOLDER = Path(__file__).parents[2] / "common"
NAME = "fedcaptor/common"


@pytest.mark.parametrize("file", ["catalogue/bytestream", "enrolment/enrolment"])
def test_the_stubs_are_up_to_date(tmp_path: Path, file: str) -> None:
    out = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["protoc", f"-I{NAME}={FOLDER}", *out, f"{NAME}/{file}.proto"]) == 0
    for name in (f"{file}_pb2.py", f"{file}_pb2.pyi"):
        assert (tmp_path / NAME / name).read_text() == (FOLDER / name).read_text(), "run `make stubs`"


def test_the_wire_is_that_of_google_bytestream() -> None:
    """Bytes as googleapis numbers them: resource_name 1, read_offset 2, read_limit 3, data 10."""
    assert (
        ReadRequest(resource_name="a", read_offset=2, read_limit=3).SerializeToString() == b"\x0a\x01a\x10\x02\x18\x03"
    )
    assert ReadResponse(data=b"x").SerializeToString() == b"\x52\x01x"
