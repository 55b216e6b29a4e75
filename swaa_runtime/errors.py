"""The error tree of the whole project; `services.gateway.errors` maps it once to gRPC status codes.

SwaaError
├── InvalidRequest          something in the request is wrong: names the field, the value and the bound
│   └── InvalidRecipe       the wrong thing is a recipe
├── OutOfCapacity           correct, but it does not fit: KV memory, queue
├── DeadlineExceeded        the request's deadline passed
├── RequestCancelled        the client went away
├── ModelNotSupported       this model, tokenizer or device cannot do what was asked
├── EngineFailed            the engine died; its requests cannot be finished here
└── IntegrityError          an invariant of our own is broken: a bug
"""

from __future__ import annotations


class SwaaError(Exception):
    """Root of every error this project raises on purpose."""


class InvalidRequest(SwaaError):
    """A field of a request has a value outside its bound."""

    def __init__(self, field: str, value: object, bound: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field} is {shown}: {bound}")
        self.field = field
        self.value = value
        self.bound = bound


class InvalidRecipe(InvalidRequest):
    """A recipe has an unknown field, an unparsable value or a layer that the model lacks."""


class OutOfCapacity(SwaaError):
    """The request is well formed, but there is no room for it."""


class DeadlineExceeded(SwaaError):
    """The request's deadline passed before it finished."""


class RequestCancelled(SwaaError):
    """The request was cancelled before it finished."""


class ModelNotSupported(SwaaError):
    """The model (or its tokenizer, or this device) cannot do what was asked."""


class EngineFailed(SwaaError):
    """The engine stopped on an unexpected error; its requests were dropped."""


class IntegrityError(SwaaError):
    """An internal invariant does not hold. Always a bug, never the caller's fault."""
