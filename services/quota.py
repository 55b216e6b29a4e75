"""How much of the service a tenant may use. Pure data: the catalogue has it, gateways and stores hold tenants to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds of one tenant, over all gateways and replicas of a deployment. None: no bound.

    Attributes:
        requests_per_minute: turns and plans, wrong ones as well; as many may come at once after a minute without any.
        prompt_tokens_per_minute: new tokens of turns' prompts, in the same way. History is not counted.
        concurrent_requests: turns that run or wait at a time.
        concurrent_prefills: of those, turns without a token yet: what is costly of long prompts.
        stored_bytes: of sessions and prefixes; None: what the store bounds every tenant to.
    """

    requests_per_minute: int | None = None
    prompt_tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    concurrent_prefills: int | None = None
    stored_bytes: int | None = None

    @property
    def bounds_requests(self) -> bool:
        """Whether anything of it is to be checked before a request is taken."""
        return self.bounds_places or (self.requests_per_minute, self.prompt_tokens_per_minute) != (None, None)

    @property
    def bounds_places(self) -> bool:
        """Whether it bounds how many turns there are at a time."""
        return (self.concurrent_requests, self.concurrent_prefills) != (None, None)


NO_QUOTA = Quota()
