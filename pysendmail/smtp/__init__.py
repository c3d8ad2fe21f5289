"""The SMTP family of protocols without I/O: bytes in, events out; replies in, bytes out."""
