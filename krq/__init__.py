"""KRQ: a distributed task queue on Kafka and Redis."""
