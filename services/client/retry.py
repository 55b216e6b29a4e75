"""When to try again, and after how long. Pure: no clock, no sleep."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from services.client.errors import Busy, ClientError, Overloaded, Unavailable

Repeat = Literal["always", "refused", "never"]
"""When a call may be made twice: whatever became of it; if the service has said that it did not run it; not at all."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Which calls are tried again: those that cannot have had an effect that a second attempt repeats.

    A turn is tried again only before its first token. Its idempotency key makes that safe in a session: what an attempt
    has saved the next one gets told, and does not run again.

    Attributes:
        max_attempts: 1 never tries again.
        first_wait_s: before the second attempt; doubles with each, up to `max_wait_s`. A random part of it, up to half,
            is left out, so that clients do not come back all at once.
        max_retry_after_s: a service that asks for more patience than this is not asked again.
    """

    max_attempts: int = 5
    first_wait_s: float = 0.2
    max_wait_s: float = 5.0
    max_retry_after_s: float = 60.0

    def wait_s(
        self, error: ClientError, attempt: int, remaining_s: float | None, repeat: Repeat, rng: random.Random
    ) -> float | None:
        """Seconds until the next attempt; None: the error stands.

        Args:
            attempt: that failed; the first is 1.
            remaining_s: until the call's deadline; None: it has none. The wait is always shorter.
        """
        refused = isinstance(error, Busy) or (isinstance(error, Overloaded) and error.retry_after_s is not None)
        lost = isinstance(error, Unavailable)
        if attempt >= self.max_attempts or repeat == "never" or not (refused or (lost and repeat == "always")):
            return None
        wait_s = min(self.max_wait_s, self.first_wait_s * 2.0 ** (attempt - 1)) * rng.uniform(0.5, 1.0)
        if isinstance(error, Overloaded) and error.retry_after_s is not None:
            if error.retry_after_s > self.max_retry_after_s:
                return None
            wait_s += error.retry_after_s
        return wait_s if remaining_s is None or wait_s < remaining_s else None


NO_RETRY = Retry(max_attempts=1)
"""Every error is the caller's at once."""
