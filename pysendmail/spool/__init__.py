"""Files that must survive a crash. Every write goes through durable.py."""
