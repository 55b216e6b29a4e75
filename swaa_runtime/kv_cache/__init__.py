"""KV memory: which block belongs to whom (integers), and the tensors that the block ids index."""
