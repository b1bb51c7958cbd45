"""The operations that every node has: what it is doing, and who may do what.

They stand on `alknet.call` like any service; the node gives them what they need of it.
"""
