"""What follows from the C headers: scripts/abi runs it, tests read the headers with it."""
