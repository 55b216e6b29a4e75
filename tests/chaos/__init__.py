"""A cluster under load while its parts are killed, paused, slowed and cut off: `make chaos`.

run         fault after fault under load, and a look at what is left; faults: what is done to whom
link        a TCP proxy that delays, swallows or cuts; namespace: a gateway that can be cut off from all others
"""
