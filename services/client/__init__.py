"""The Python client: `Client`, and `AsyncClient` for programs with an event loop. No protobuf types in sight.

    with Client("127.0.0.1:50051", timeout_s=60) as client:
        answer = client.generate("The keeper's log ...", question="Who came?", sla="interactive")

aio             calls, sessions, conversations; sync: the same, blocking
answer_stream   one turn as it comes
options         keyword arguments → headers, sampling, prompt; upload: prompts in pieces
connection      channel, deadlines; retry: when to try again; tls: credentials from files
decode          messages → types; errors: statuses → exceptions
"""

from services.client.aio import AsyncChat, AsyncClient, AsyncSessions
from services.client.answer_stream import AsyncAnswerStream
from services.client.errors import (
    Busy,
    Cancelled,
    ClientError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerError,
    Unauthenticated,
    Unavailable,
)
from services.client.options import PlanOptions, Prompt, TurnOptions
from services.client.retry import NO_RETRY, Retry
from services.client.sync import AnswerStream, Chat, Client, Sessions
from services.client.tls import tls
from services.client.types import (
    Accepted,
    Answer,
    Candidate,
    Catalog,
    FinishReason,
    KvMemory,
    Logprob,
    MeasuredRecipe,
    Message,
    Objective,
    Plan,
    Prediction,
    Progress,
    QualityPoint,
    Recipe,
    RestorePlan,
    Session,
    SessionResult,
    SlaClass,
    Timings,
    Token,
    Usage,
)

__all__ = (
    "Client",
    "AsyncClient",
    "Chat",
    "AsyncChat",
    "Sessions",
    "AsyncSessions",
    "AnswerStream",
    "AsyncAnswerStream",
    "Prompt",
    "PlanOptions",
    "TurnOptions",
    "Retry",
    "NO_RETRY",
    "tls",
    "Accepted",
    "Answer",
    "Candidate",
    "Catalog",
    "FinishReason",
    "KvMemory",
    "Logprob",
    "MeasuredRecipe",
    "Message",
    "Objective",
    "Plan",
    "Prediction",
    "Progress",
    "QualityPoint",
    "Recipe",
    "RestorePlan",
    "Session",
    "SessionResult",
    "SlaClass",
    "Timings",
    "Token",
    "Usage",
    "ClientError",
    "Busy",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InvalidRequest",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "ServerError",
    "Unauthenticated",
    "Unavailable",
)
