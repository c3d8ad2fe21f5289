"""pysendmail: a mail transfer agent. docs/ARCHITECTURE.md is the map; imports point down."""

__version__ = "0.1.0"
