"""What mail is: addresses, headers, envelopes, outcomes, reports. Pure: no files, sockets or clocks."""
