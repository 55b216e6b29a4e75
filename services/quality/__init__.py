"""What recipes cost in quality: measuring it, choosing layers by it, training for it.

Knows models and the runtime; nothing of gRPC, Redis or Ray. It runs where only torch, transformers and numpy are
installed, so that a borrowed GPU machine can measure and train: `python -m services.quality`, `services.quality.tune`.
"""
