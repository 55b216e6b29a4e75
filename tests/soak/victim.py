"""A client process that is about to be killed: `python -m tests.soak.victim HOST:PORT`. Says a line once it streams."""

from __future__ import annotations

import sys
import time

import grpc

from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc

LIFE_S = 300.0


def main(address: str) -> None:
    """Open a turn of a new session and half an upload, and hold them."""
    stub = pb_grpc.LongContextStub(grpc.insecure_channel(address))  # type: ignore[no-untyped-call]
    sampling = pb.Sampling(max_tokens=64, ignore_eos=True)
    request = pb.GenerateRequest(prompt=pb.Prompt(text="Of the harbour: " * 8), sampling=sampling)
    turn = stub.Generate(request, metadata=(("x-swaa-session", "new"),), timeout=LIFE_S)

    def half() -> object:
        yield pb.GenerateUploadRequest(request=pb.GenerateRequest(sampling=sampling))
        yield pb.GenerateUploadRequest(text=b"Of the harbour: " * 64)
        time.sleep(LIFE_S)

    upload = stub.GenerateUpload(half(), timeout=LIFE_S)
    next(turn)
    sys.stdout.write("streaming\n")
    sys.stdout.flush()
    for _ in turn:
        pass
    next(upload)


if __name__ == "__main__":
    main(sys.argv[1])
