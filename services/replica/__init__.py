"""A process that owns one copy of the model, its KV memory and an engine."""
