"""The service as a user runs it: a `swaa serve` process, gRPC over a socket, turns as a client sees them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
import torch

from services.gateway.limits import GRPC_OPTIONS
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from swaa_runtime.model.loader import fast_dtype
from tests.conftest import CACHE_DIR

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 120.0
TURN_TIMEOUT_S = 240.0
SWAA = (sys.executable, "-m", "services.cli")

Headers = Mapping[str, str] | Iterable[tuple[str, str | bytes]]


class Service:
    """One service with a state folder of its own; it can be stopped, killed and started again on the same state."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """`settings` by the names of `ServeConfig`."""
        self.state_dir = folder / "state"
        self._log_path = folder / "serve.log"
        self._ready = folder / "address"
        self._http_ready = folder / "http-address"
        self._environment = environment(
            SWAA_STATE_DIR=str(self.state_dir), **{f"SWAA_{name.upper()}": value for name, value in settings.items()}
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def start(self) -> None:
        """Start it and wait until it serves."""
        self._close()
        self._ready.unlink(missing_ok=True)
        listen = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
        ready = ("--ready-file", str(self._ready), "--http-ready-file", str(self._http_ready))
        command = (*SWAA, "serve", *listen, *ready)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        until = time.monotonic() + START_TIMEOUT_S
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                pytest.fail(f"the service did not start:\n{self.log[-3000:]}")
            time.sleep(0.05)
        self._channel = grpc.insecure_channel(self.address, options=GRPC_OPTIONS)

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> str:
        return self._ready.read_text(encoding="utf-8")

    @property
    def http_address(self) -> str:
        return self._http_ready.read_text(encoding="utf-8")

    @property
    def model(self) -> str:
        """What it was told to serve."""
        return self._environment.get("SWAA_MODEL", "smollm2")

    @property
    def log(self) -> str:
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def channel(self) -> grpc.Channel:
        assert self._channel is not None
        return self._channel

    @property
    def stub(self) -> Any:
        return pb_grpc.LongContextStub(self.channel)  # type: ignore[no-untyped-call]

    @property
    def redis_url(self) -> str:
        """Of its private Redis server."""
        return f"unix://{self.state_dir / 'redis' / 'redis.sock'}"

    def stop(self) -> int:
        """SIGTERM, as an orchestrator sends it; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(STOP_TIMEOUT_S)
        self._close()
        assert "ERROR asyncio" not in self.log, "something that nobody waited for"
        return code

    def kill(self) -> None:
        """SIGKILL. Does nothing if it does not run. The channel stays open: its calls shall learn of the kill."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def redis_processes(self) -> list[int]:
        """Ids of processes that have the state folder in their command line: its Redis server and what guards it."""
        needle = os.fsencode(str(self.state_dir / "redis"))
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if needle in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self._close()


def environment(**settings: str) -> dict[str, str]:
    """This process's, with no SWAA_ setting but the cache, so that model and cost profile are made once."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("SWAA_")}
    return {**others, "SWAA_CACHE_DIR": str(CACHE_DIR.absolute()), **settings}


@dataclass(frozen=True, slots=True)
class Turn:
    """All events of a turn that ended well; that they come in the promised order is checked on making one."""

    events: tuple[pb.GenerateResponse, ...]

    def __post_init__(self) -> None:
        kinds = " ".join(str(event.WhichOneof("event")) for event in self.events)
        assert re.fullmatch(r"accepted( prefill)+( token)+ finish", kinds), kinds

    @property
    def accepted(self) -> pb.Accepted:
        return self.events[0].accepted

    @property
    def finish(self) -> pb.Finish:
        return self.events[-1].finish

    @property
    def prefill(self) -> list[pb.PrefillProgress]:
        return [event.prefill for event in self.events if event.WhichOneof("event") == "prefill"]

    @property
    def tokens(self) -> list[pb.Token]:
        return [event.token for event in self.events if event.WhichOneof("event") == "token"]

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens) + self.finish.text

    @property
    def session_id(self) -> str:
        return self.finish.session.session_id


KV_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * fast_dtype(torch.device("cpu")).itemsize
"""Of the default model: layers, K and V, heads, head_dim."""

TIE = 0.25
"""Two steps of a bfloat16 logit. Other batch shapes round differently, so tokens as near as this may change places."""


def assert_same_but_for_ties(left: Turn, right: Turn) -> None:
    """Both have the same tokens, up to one where each of their two choices was as likely. Needs logprobs=3."""
    for ours, theirs in zip(left.tokens, right.tokens, strict=True):
        if ours.token_id == theirs.token_id:
            continue
        for token, other in ((ours.logprob, theirs.token_id), (theirs.logprob, ours.token_id)):
            likely = dict(zip(token.top_token_ids, token.top_logprobs, strict=True))
            assert other in likely, f"{other} is none of {likely}"
            assert likely[other] >= token.logprob - TIE
        return  # after it, the texts differ


def metadata(headers: Headers) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(headers.items()) if isinstance(headers, Mapping) else tuple(headers)


def prompt_of(prompt: str | pb.Prompt) -> pb.Prompt:
    return pb.Prompt(text=prompt) if isinstance(prompt, str) else prompt


def open_turn(
    service: Service,
    prompt: str | pb.Prompt,
    headers: Headers = (),
    timeout_s: float = TURN_TIMEOUT_S,
    **sampling: Any,
) -> Any:
    """A running call: iterate it for events, or cancel it. Generates 8 tokens unless told otherwise."""
    request = pb.GenerateRequest(prompt=prompt_of(prompt), sampling=pb.Sampling(**{"max_tokens": 8, **sampling}))
    return service.stub.Generate(request, metadata=metadata(headers), timeout=timeout_s)


def run_turn(service: Service, prompt: str | pb.Prompt, headers: Headers = (), **sampling: Any) -> Turn:
    """A whole turn."""
    return Turn(tuple(open_turn(service, prompt, headers, **sampling)))


def session(session_id: str, recipe: str = "interleaved") -> dict[str, str]:
    """Headers of a turn of it."""
    return {"x-swaa-session": session_id, "x-swaa-recipe": recipe}


def get_session(service: Service, session_id: str) -> pb.Session:
    answer: pb.Session = service.stub.GetSession(pb.GetSessionRequest(session_id=session_id), timeout=120)
    return answer


def fork_session(service: Service, session_id: str) -> str:
    answer: pb.Session = service.stub.ForkSession(pb.ForkSessionRequest(session_id=session_id), timeout=120)
    return answer.session_id


def recipes_with_a_tail(service: Service) -> list[str]:
    """Names of recipes whose prompt's end looks back; which there are is a matter of measurement."""
    answer = service.stub.ListRecipes(pb.ListRecipesRequest(), timeout=120)
    return [item.recipe.name for item in answer.recipes if item.recipe.window and item.recipe.full_tail]


def read_until(call: Any, kind: str, count: int = 1) -> list[pb.GenerateResponse]:
    """Events of a running call, up to the `count`-th of a kind."""
    events = []
    for event in call:
        events.append(event)
        count -= event.WhichOneof("event") == kind
        if count == 0:
            return events
    raise AssertionError(f"the stream ended before enough {kind} events came")


@contextlib.contextmanager
def refused(code: grpc.StatusCode, *parts: str) -> Iterator[None]:
    """The body's RPC ends with this status, and its message has all these parts."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    check_refusal(caught.value, code, *parts)


def check_refusal(error: Any, code: grpc.StatusCode, *parts: str) -> None:
    assert error.code() is code, f"{error.code()}: {error.details()}"
    for part in parts:
        assert part in error.details(), error.details()


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> bool:
    """Whether it comes true in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def run_swaa(*arguments: str, stdin: bytes = b"", timeout_s: float = 240.0) -> subprocess.CompletedProcess[bytes]:
    """The `swaa` command in a process of its own."""
    return subprocess.run(
        (*SWAA, *arguments), input=stdin, capture_output=True, timeout=timeout_s, env=environment(), check=False
    )


NAMES = ("Aurora", "Borealis", "Cormorant", "Dunlin", "Eider", "Fulmar", "Gannet", "Heron")
CARGOES = ("salt", "timber", "wool", "copper", "grain", "rope", "tar", "glass")


def log_of(num_lines: int, seed: int = 0) -> str:
    """English of about 21 tokens a line."""
    lines = []
    for number in range(seed, seed + num_lines):
        name, cargo = NAMES[number * 5 % 8], CARGOES[number * 3 % 8]
        lines.append(f"On day {number} the {name} came in with {number * 7 % 90 + 10} crates of {cargo}.")
    return "\n".join(lines)


QUESTION = "\nThe harbour keeper read the log again and said that the ship with the most crates was the"
