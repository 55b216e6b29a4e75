"""Tokens in, tokens out: a model under per-request attention recipes. No gRPC, Ray, Redis or asyncio in here."""
