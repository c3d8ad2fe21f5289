"""Where mail goes: tables are read here, nothing is delivered here."""
