"""The contract that every method keeps, as tests that the author of one can run: ``pytest --pyargs eunoe.contract``.

They go over the methods that installed packages bring (``-k NAME``: over one; where there is none: over eunoe's own), on tiny
models made on the spot, without a network. They need pytest, which eunoe itself does not. eunoe's own suite takes them over
all of METHODS, and over methods made up for hooks that none uses.
"""
