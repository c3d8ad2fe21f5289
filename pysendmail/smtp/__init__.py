"""The SMTP family of protocols without I/O: bytes in, events out; replies in, bytes out.

Both sides  wire (line ends, end of data)  reply  grammar (commands, addresses, parameters)  sasl
Client      client (the session)  opening (up to the first MAIL)  transaction (one message at one host)
            trouble (what each failure means)
            survey, recode, mime, transfer (a message that a host cannot have as it is)
Server      server (the commands)  session (buffer, replies, end)  order (the table)
            requests (what the driver is asked)  receiving (a message on its way in)
            profile (terms and limits)  patience (too many errors)

A driver owns the connection and the clock; tests/unit/test_smtp_sink.py has the least one there can be.
"""
