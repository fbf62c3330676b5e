"""Processes that answer the same requests in different ways; `protocol` is what they have in common."""
