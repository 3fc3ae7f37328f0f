"""Nouns and their state machines. No I/O, no system time, no SQL."""
