"""``python -m benchmarks [NAME ...]``: each row is us, a peer and the machine's limit, measured in turn in one run."""
