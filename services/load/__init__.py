"""An open-loop load generator for any server of swaa.v1.LongContext, and what it makes of the answers.

    arrivals ──▶ trace ──▶ runner ──▶ report ──▶ plots
    when          what      over gRPC   figures   PNG

Nothing here knows how a server works; only the public contract is used.
"""
