"""Runs the model over one flattened batch. Owns the KV tensors; knows nothing of scheduling."""

from __future__ import annotations

from typing import Any

import torch

from swaa_runtime.attention.backend import AttentionBackend, PagedContext
from swaa_runtime.attention.reference import ReferenceBackend
from swaa_runtime.attention.windowed import WindowedBackend
from swaa_runtime.batch import Batch
from swaa_runtime.config import AttentionBackendName, EngineConfig
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.loader import LoadedModel, torch_dtype


class ModelRunner:
    """One model, its KV memory and its attention backend on one device."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self.shape = loaded.shape
        self.device: torch.device = loaded.model.device
        self.backend = make_backend(config.attention_backend)
        self.storage = KVStorage(
            config.num_blocks,
            config.block_size_tokens,
            loaded.shape.num_kv_heads,
            loaded.shape.head_dim,
            torch_dtype(loaded.shape.dtype),
            self.device,
        )
        self.adapters = loaded.adapters
        self._decoder: Any = loaded.model.base_model
        self._lm_head: Any = loaded.model.get_output_embeddings()

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states of all T tokens, [T, hidden_size]; their K and V are in `storage` afterwards."""
        context = PagedContext(self.storage, self.backend, batch.chunks, batch.slots)
        with self.adapters.active.during(batch.adapter_rows):
            out = self._decoder(
                input_ids=batch.token_ids.unsqueeze(0),
                position_ids=batch.positions.unsqueeze(0),
                use_cache=False,
                swaa_context=context,
            )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [n, vocab_size] of hidden states [n, hidden_size]."""
        logits: torch.Tensor = self._lm_head(hidden)
        return logits.float()

    def wait(self) -> None:
        """Return when the device has done all it was asked to: only then is it known what a step has taken."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def make_backend(name: AttentionBackendName) -> AttentionBackend:
    """The attention backend of that name."""
    return ReferenceBackend() if name == "reference" else WindowedBackend()
