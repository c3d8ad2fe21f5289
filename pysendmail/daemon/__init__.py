"""The processes that run: supervisor, runner, listener, relay, and what they are made of."""
