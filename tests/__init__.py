"""The tests. A package, so that `tests.tools` is ours whatever else is installed."""
