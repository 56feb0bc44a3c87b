"""Pure decisions and words: no I/O, clock, threads or logging in here."""
