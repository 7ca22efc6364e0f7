"""``krq dashboard``: queues, workers, tasks and failures, live in a terminal."""
