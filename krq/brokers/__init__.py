"""Adapters of the log: Kafka, and Redis Streams with consumer groups."""
