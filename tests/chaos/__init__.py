"""Chaos: real processes and servers are killed, stopped and restarted under load; an outside ledger tells what happened."""
