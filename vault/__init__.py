"""The vault (one mnemonic, derived keys, sealed secrets): the place is reserved, nothing is here yet.

May import leaf modules only: it knows no network.
"""
