"""The built package in a Debian of its own; `./dev e2e` runs these tests."""
