"""Packs: the folder, its entries, and the store of a worker."""
