"""The floor: the raw client calls that a queue of the same safety cannot do without, and nothing else.

One process. For each batch: poll Kafka, decode, claim each task in Redis, call the function, store each
result with a TTL, append one record to an events topic (acks=all), commit the offsets.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

RECORD = b'{"task":"nothing","task-id":"0123456789abcdef0123456789ab","args":[1]}'


def create(kafka: str, *topics: str, partitions: int = 8) -> None:
    """Make topics like KRQ's."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1} for topic in topics})
    admin.close()


def drain(kafka: str, store: redis.Redis, topic: str, n: int, function: Callable[..., object]) -> float:
    """Tasks a second over ``n`` records of ``topic``."""
    consumer = KafkaConsumer(topic, bootstrap_servers=kafka, group_id=f"{topic}.floor", auto_offset_reset="earliest",
                             enable_auto_commit=False, max_poll_records=500)  # fmt: skip
    producer = KafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=False, linger_ms=5)
    done, began = 0, 0.0
    while done < n:
        batch = [record for records in consumer.poll(500).values() for record in records]
        if not batch:
            continue
        began = began or time.perf_counter()
        tasks = [json.loads(record.value) for record in batch]
        claim = store.pipeline(transaction=False)
        for task in tasks:
            claim.set(f"floor:c:{task['task-id']}", "me", nx=True, ex=3600)
        claimed = claim.execute()
        results = [function(*task["args"]) for task, mine in zip(tasks, claimed, strict=True) if mine]
        keep = store.pipeline(transaction=False)
        for task, result in zip(tasks, results, strict=True):
            keep.set(f"floor:r:{task['task-id']}", json.dumps(result), ex=3600)
        keep.execute()
        producer.send(f"{topic}.log", json.dumps([[task["task-id"], "success"] for task in tasks]).encode())
        consumer.commit()
        done += len(batch)
    producer.flush()
    rate = done / (time.perf_counter() - began)
    consumer.close()
    producer.close()
    return rate


class Producer:
    """A warm producer for single sends with acks=all."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=False)
        self._topic = topic

    def one(self) -> None:
        """Send one record and wait until the log has it."""
        self._producer.send(self._topic, RECORD).get(10)

    def close(self) -> None:
        """Let go of the connection."""
        self._producer.close()


def produce_bulk(kafka: str, topic: str, value: bytes, n: int) -> float:
    """Records a second, sent without waiting and then flushed."""
    producer = KafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=False, linger_ms=5, batch_size=131072)
    producer.send(topic, value).get(10)
    began = time.perf_counter()
    for _ in range(n):
        producer.send(topic, value)
    producer.flush()
    rate = n / (time.perf_counter() - began)
    producer.close()
    return rate
