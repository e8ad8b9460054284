"""CUDA with buffers managed by hand: what a GPU backend is made of.

Nothing here is imported where there is no GPU, and nothing happens on import. One thread owns a device; all GPU calls
are made on it.
"""
