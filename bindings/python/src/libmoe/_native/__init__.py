"""The native library: its declarations, how it is found, called and let go, and what its arguments may be."""
