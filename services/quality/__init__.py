"""What recipes cost in quality: tasks, their evaluation, and the tables and plots made of it.

Knows models and the runtime; nothing of gRPC, Redis or Ray. `evaluate.py` runs where only torch, transformers and
numpy are installed, so that a borrowed GPU machine can measure (`python -m services.quality`).
"""
