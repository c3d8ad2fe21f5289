"""Sockets, TLS and DNS: asyncio lives here and in daemon/."""
