"""Attention of one step over paged KV memory, behind one narrow interface."""
