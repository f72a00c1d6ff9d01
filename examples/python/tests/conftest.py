"""A shell lets what it starts with & ignore SIGINT, and children inherit that: tests send it to theirs."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
