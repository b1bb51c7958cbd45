"""The test kit: real nodes as processes, real clients, and deterministic helpers."""
