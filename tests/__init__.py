"""Where there is no CUDA, Triton's kernels run in its interpreter.

It reads that when it is first imported, which importing the service does; so it is said here, before any test's import.
"""

import gc
import os
import sys

if "pytest" in sys.modules:
    gc.disable()  # a third of its imports' time; conftest.py enables it when all tests are collected

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
