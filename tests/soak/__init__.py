"""A mixed load with rude clients, and what must hold after it: `make soak`; under faults of a cluster: `make chaos`.

run         minutes of load, pauses, looks; report: what a minute looked like, the verdict
crowd       who does what, how often; world: what they share
turns       polite clients; rude: those that cancel, disconnect, dawdle, die
ledger      what clients were told of their sessions; oracle: what greedy answers should have been
idle        what a service holds when nobody asks; audit: what Redis holds
"""
