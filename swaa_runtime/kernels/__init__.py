"""Triton kernels, each beside its plain twin. Importing any but the twins needs triton: only what runs a GPU does."""
