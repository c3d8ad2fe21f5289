"""The last hop: as the recipient into a mailbox, or to another host."""
