"""Real servers on this machine, for development, tests and benchmarks: no root, no Docker."""
