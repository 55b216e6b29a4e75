"""A replica under load in virtual time: everything is the service's own but the model, the clock and the wires.

    trace ──▶ headers ──▶ planner ──▶ promise ──▶ engine, scheduler, KV blocks ──▶ runner that computes nothing
                             ▲                        │                               and takes what a profile says
                             └──── backlog, prices ◀──┘

Not here: the time that wires, tokenizer, planner and scheduler themselves take, sessions, and copies of preempted
states. So a simulated figure says what the rules do, not what a machine does.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch

from services.backlog import backlog_of
from services.cost import CostProfile, CountedLayers, chunk_work, step_work
from services.errors import SlaUnattainable
from services.gateway.catalog import Catalog
from services.gateway.planner import Plan, Work, plan
from services.gateway.sla import Objective, parse_headers
from services.load.results import OK, REFUSED, Result
from services.load.trace import TraceRequest
from services.replica.job import Job
from services.replica.online_cost import OnlineCost
from services.replica.promises import Promises
from swaa_runtime.batch import Batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.engine import Engine
from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.model.adapters import Adapters
from swaa_runtime.outputs import Finished, TokenOutput
from swaa_runtime.request import Request, SamplingParams, new_request
from swaa_runtime.runner import ModelRunner
from swaa_runtime.shape import ModelShape


class VirtualClock:
    """Seconds. It moves when it is told to, and what is due meanwhile happens at its own time."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def __call__(self) -> float:
        return self._now_s

    @property
    def next_s(self) -> float:
        """When the next thing is due; inf: nothing is."""
        return self._due[0][0] if self._due else math.inf

    def at(self, when_s: float, happen: Callable[[], None]) -> None:
        """Let something happen then."""
        heapq.heappush(self._due, (when_s, next(self._order), happen))

    def advance(self, to_s: float) -> None:
        """Let time pass."""
        while self.next_s <= to_s:
            self._now_s, _, happen = heapq.heappop(self._due)
            happen()
        self._now_s = to_s


@dataclass(frozen=True, slots=True)
class VirtualTimer:
    """A `StepTimer` by such a clock."""

    clock: VirtualClock
    start_s: float

    def stop(self) -> None:
        """See StepTimer."""

    def is_done(self) -> bool:
        """See StepTimer."""
        return True

    def elapsed_ms(self) -> float:
        """See StepTimer. Asked for before anything else happens."""
        return (self.clock() - self.start_s) * 1e3


@dataclass(slots=True)
class EmptyMemory:
    """A `StateMemory` without memory: states have sizes, and nothing in them."""

    shape: ModelShape
    block_size_tokens: int

    @property
    def bytes_per_token_layer(self) -> int:
        """See StateMemory."""
        return self.shape.bytes_per_token_layer

    @property
    def bytes_per_block(self) -> int:
        """See StateMemory."""
        return self.bytes_per_token_layer * self.block_size_tokens

    def read(self, tables: Sequence[Sequence[int]], start: int, stop: int) -> torch.Tensor:
        """See StateMemory."""
        sizes = len(tables), 2, stop - start, self.shape.num_kv_heads, self.shape.head_dim
        return torch.zeros((), dtype=getattr(torch, self.shape.dtype)).expand(sizes)

    def place(self, slots: np.ndarray, data: torch.Tensor) -> None:
        """See StateMemory."""

    def fill(self, blocks: Sequence[int], value: float) -> None:
        """See StateMemory."""


class Machine:
    """What steps really take.

    Args:
        profile: what they take on average, but for `bias`: how many times as long.
        noise: standard deviation of the logarithm of a factor that each step has of its own; its mean is 1.
    """

    def __init__(self, profile: CostProfile, bias: float = 1.0, noise: float = 0.0, seed: int = 0) -> None:
        self.profile = profile
        self._bias = bias
        self._noise = noise
        self._rng = random.Random(f"{seed}/steps")
        self._layers = CountedLayers()

    def step_ms(self, batch: Batch) -> float:
        """Of the next step."""
        work = step_work(
            chunk_work(self._layers.of(chunk.rules), chunk.turns, chunk.start, chunk.stop - chunk.start)
            for chunk in batch.chunks
        )
        factor = self._rng.lognormvariate(-(self._noise**2) / 2, self._noise)
        return self.profile.step_ms(work) * self._bias * factor


class SimulatedRunner(ModelRunner):
    """Computes nothing, and lets the time pass that a machine would take. Every token is 0."""

    def __init__(self, shape: ModelShape, config: EngineConfig, machine: Machine, clock: VirtualClock) -> None:
        self.shape = replace(shape, vocab_size=1)
        self.device = torch.device("cpu")
        self.storage = EmptyMemory(shape, config.block_size_tokens)
        self.adapters = Adapters()
        self._machine = machine
        self._clock = clock

    def run(self, batch: Batch, between_layers: Callable[[], None] | None = None) -> torch.Tensor:
        """See ModelRunner."""
        layer_s = self._machine.step_ms(batch) / 1e3 / self.shape.num_layers
        for layer in range(self.shape.num_layers):
            if between_layers is not None and layer > 0:
                between_layers()
            self._clock.advance(self._clock() + layer_s)
        return torch.zeros(len(batch.sampled), 1)

    def runs_ahead_of(self, batch: Batch) -> bool:
        """See ModelRunner: nothing runs ahead in virtual time."""
        return False

    def timer(self) -> VirtualTimer:
        """See ModelRunner."""
        return VirtualTimer(self._clock, self._clock())

    def check(self) -> None:
        """See ModelRunner."""


class NoText:
    """A `Decoder` whose tokens say nothing."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = True) -> str:
        """See Decoder."""
        return ""


@dataclass(slots=True)
class _Turn:
    """A request on its way: what was planned, and when its tokens came."""

    result: Result
    objective: Objective
    request: Request
    token_times_s: list[float] = field(default_factory=list)


class SimulatedService:
    """A gateway before one replica, for one trace.

    Args:
        profile: what planner and scheduler start from; they correct it by what steps take, as in a service.
        machine: what steps really take.
    """

    def __init__(
        self, catalog: Catalog, shape: ModelShape, config: EngineConfig, profile: CostProfile, machine: Machine
    ) -> None:
        self._catalog = catalog
        self._shape = shape
        self._clock = VirtualClock()
        self._cost = OnlineCost(profile)
        self.engine = Engine(SimulatedRunner(shape, config, machine, self._clock), config, NoText(), (), self._clock)
        self.engine.set_cost(self._cost)
        self._promises = Promises(self._clock)
        self._coming: list[_Turn] = []
        self._turns: dict[str, _Turn] = {}
        self._results: dict[int, Result] = {}

    def run(self, trace: Sequence[TraceRequest]) -> list[Result]:
        """What becomes of each request, in the trace's order, once all of them have ended."""
        for index, asked in enumerate(trace):
            self._clock.at(asked.arrival_ms / 1e3, partial(self._arrive, index, asked))
        while True:
            self._submit()
            if self.engine.has_work:
                for output in self.engine.step(self._between_layers):
                    self._take(output)
            elif self._clock.next_s < math.inf:
                self._clock.advance(self._clock.next_s)
            else:
                return [self._results[index] for index in range(len(trace))]

    def _between_layers(self) -> None:
        self._submit()
        for output in self.engine.interrupt():
            self._take(output)

    def _arrive(self, index: int, asked: TraceRequest) -> None:
        """Plan a request at its own time: in the middle of a step, whose next layer it has to wait for at least."""
        tenant = self._catalog.tenant("")
        objective = parse_headers(asked.headers.items(), self._catalog.sla_classes, tenant)
        result = Result(
            index=index,
            arrival_ms=asked.arrival_ms,
            sent_ms=asked.arrival_ms,
            sla_class=objective.sla_class,
            session="",
            status=OK,
            prompt_tokens=asked.prompt_tokens,
            objective_ttft_ms=objective.ttft_ms,
            objective_tpot_ms=objective.tpot_ms,
            min_quality=objective.min_quality,
        )
        backlog = self._promises.added_to(backlog_of(self.engine.load, self._clock()))
        work = Work(asked.prompt_tokens, asked.max_tokens, None, continues=False, backlog=backlog)
        try:
            made = plan(objective, work, self._catalog, self._cost.profile, self._shape.bytes_per_token_layer)
        except SlaUnattainable as exc:
            self._results[index] = replace(result, status=REFUSED, detail=str(exc), retry_after_ms=exc.retry_after_ms)
            return
        job = self._job(str(index), asked, objective, made)
        self._promises.add(job)
        predicted = made.chosen.prediction
        result = replace(
            result,
            recipe=job.recipe_name,
            predicted_ttft_ms=predicted.ttft_ms,
            predicted_tpot_ms=predicted.tpot_ms,
            predicted_to_meet=made.chosen.meets,
            quality=predicted.quality,
        )
        self._coming.append(_Turn(result, objective, self._request(job)))

    def _job(self, request_id: str, asked: TraceRequest, objective: Objective, made: Plan) -> Job:
        named = made.chosen.named
        return Job(
            request_id=request_id,
            prompt_token_ids=(0,) * asked.prompt_tokens,
            recipe_name=named.name,
            recipe=named.recipe,
            sampling=SamplingParams(max_tokens=asked.max_tokens),
            priority=objective.priority,
            ttft_due_s=self._clock() + objective.ttft_ms / 1e3,
            tpot_ms=objective.tpot_ms,
            restore=made.chosen.prediction.restore,
        )

    def _request(self, job: Job) -> Request:
        request = new_request(
            job.request_id,
            job.prompt_token_ids,
            job.recipe,
            self._shape.num_layers,
            job.sampling,
            priority=job.priority,
            ttft_due_s=job.ttft_due_s,
            tpot_ms=job.tpot_ms,
        )
        request.arrival_s = self._clock()
        return request

    def _submit(self) -> None:
        """Between two steps the engine takes what has come meanwhile."""
        for turn in self._coming:
            try:
                self.engine.add(turn.request)
            except OutOfCapacity as exc:
                self._promises.end(turn.request.request_id)
                self._results[turn.result.index] = replace(turn.result, status=REFUSED, detail=str(exc))
            else:
                self._turns[turn.request.request_id] = turn
        self._coming.clear()

    def _take(self, output: object) -> None:
        if isinstance(output, TokenOutput):
            self._promises.end(output.request_id)
            self._turns[output.request_id].token_times_s.append(self._clock())
        elif isinstance(output, Finished):
            turn = self._turns.pop(output.request_id)
            self._results[turn.result.index] = _answered(turn, self._clock())


def _answered(turn: _Turn, now_s: float) -> Result:
    """As a client counts, who sits where the replica does."""
    times_s, objective, arrival_s = turn.token_times_s, turn.objective, turn.request.arrival_s
    ttft_ms = (times_s[0] - arrival_s) * 1e3
    tpot_ms = (times_s[-1] - times_s[0]) / (len(times_s) - 1) * 1e3 if len(times_s) > 1 else 0.0
    in_time = ttft_ms <= objective.ttft_ms and tpot_ms <= objective.tpot_ms
    return replace(
        turn.result,
        generated_tokens=len(times_s),
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        total_ms=(now_s - arrival_s) * 1e3,
        met=in_time and turn.result.quality >= objective.min_quality,
        met_latency=in_time,
    )
