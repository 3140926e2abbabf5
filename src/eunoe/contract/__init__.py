"""The contract that every method keeps, as tests that the author of one can run: ``pytest --pyargs eunoe.contract -k NAME``.

They go over METHODS, to which installed packages add their own, on tiny models made on the spot, without a network. They
need pytest, which eunoe itself does not. eunoe's own suite takes them over methods made up for hooks that none uses, too.
"""
