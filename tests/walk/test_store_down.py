"""The session store goes away in mid-turn, and comes back. (One that is away before the start is `test_cli`'s.)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from services.pb.swaa.v1 import long_context_pb2 as pb
from services.sessions.embedded_redis import EmbeddedRedis

from .harness import QUESTION, Service, log_of, open_turn, read_until, refused, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
NEW = {"x-swaa-session": "new"}
TOKENS = 150
"""So many that the turn is not done before the store is killed."""


@pytest.fixture
def store(walk_folder: Path) -> Iterator[EmbeddedRedis]:
    """A Redis server that is not the service's own."""
    with EmbeddedRedis(walk_folder / "elsewhere") as server:
        yield server
        server.kill()


def test_a_store_that_dies_takes_no_turn_with_it(walk_folder: Path, store: EmbeddedRedis, tiny: Service) -> None:
    folder = walk_folder / "external"
    folder.mkdir()
    settings = {"model": tiny.model, "dtype": "float32", "kv_memory_mib": "16", "cache_dir": str(walk_folder / "tiny")}
    with Service(folder, redis_url=store.url, **settings) as service:
        session_id = run_turn(service, log_of(5) + QUESTION, NEW).session_id
        assert not service.redis_processes(), "it started no server of its own"

        call = open_turn(service, "\nIt left with", {"x-swaa-session": session_id}, max_tokens=TOKENS, ignore_eos=True)
        read_until(call, "token", 3)
        store.kill()
        rest = list(call)
        assert sum(event.WhichOneof("event") == "token" for event in rest) == TOKENS - 3
        outcome = rest[-1].finish.session
        assert (outcome.saved, outcome.version, outcome.saved_bytes) == (False, 1, 0)
        assert outcome.error.startswith("session store: ")

        for headers in (NEW, {"x-swaa-session": session_id}):
            with refused(UNAVAILABLE, "session store"):
                run_turn(service, "\nIt left with", headers)
        for call in (
            lambda: service.stub.GetSession(pb.GetSessionRequest(session_id=session_id)),
            lambda: service.stub.ListSessions(pb.ListSessionsRequest()),
            lambda: service.stub.ForkSession(pb.ForkSessionRequest(session_id=session_id)),
            lambda: service.stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id)),
        ):
            with refused(UNAVAILABLE, "session store"):
                call()
        assert len(run_turn(service, "The ship").tokens) == 8, "turns without a session need no store"

        store.start()
        assert run_turn(service, "The ship", NEW).finish.session.saved
        assert service.stub.GetSession(pb.GetSessionRequest(session_id=session_id)).version == 1
        # The session itself stays leased to the turn that could not give it back, for half a minute at most.
        fork = service.stub.ForkSession(pb.ForkSessionRequest(session_id=session_id)).session_id
        again = run_turn(service, "\nIt left with", {"x-swaa-session": fork})
        assert again.finish.session.saved
        assert again.finish.usage.restored_tokens == again.finish.usage.history_tokens - 1
        assert service.stop() == 0
