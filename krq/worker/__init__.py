"""The worker: a supervisor that runs no task, and children that do."""
