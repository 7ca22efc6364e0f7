"""The schedule in Redis: keys, scripts, and the client that runs them."""
