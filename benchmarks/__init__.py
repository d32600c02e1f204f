"""muster beside its peers, measured in one run. `python -m benchmarks --help`; never run by the tests."""
