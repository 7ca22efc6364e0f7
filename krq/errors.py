"""Every error that KRQ raises: one root, a stable ``code`` each, cause and cure in the text."""

from __future__ import annotations

from typing import ClassVar


class KRQError(Exception):
    """Root of all KRQ errors. ``str(error)`` is the cause, then the cure, then the code."""

    code: str = "KRQ_ERROR"
    cure: ClassVar[str] = ""

    def __init__(self, cause: str, *, cure: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.advice = self.cure if cure is None else cure

    def __str__(self) -> str:
        text = self.cause.rstrip(".")
        text = text if text.endswith("?") or not self.advice else f"{text}."
        return f"{text} {self.advice} [{self.code}]" if self.advice else f"{text} [{self.code}]"


# --- set-up and connections ------------------------------------------------------------------


class ConfigError(KRQError, ValueError):
    """A setting, URL or option has a value that cannot be used."""

    code = "CONFIG_INVALID"
    cure = "Correct the named setting; docs/configuration.md lists all of them."


class AppClosed(KRQError):
    """The app was closed, or its process forked away from it."""

    code = "APP_CLOSED"
    cure = "Create a new KRQ(...), or do not call close() before the last use."


class BrokerConnectionError(KRQError, ConnectionError):
    """The broker does not answer. What was asked for has not happened, unless said otherwise."""

    code = "BROKER_CONNECTION_ERROR"


class KafkaConnectionError(BrokerConnectionError):
    """No Kafka broker could be reached."""

    code = "KAFKA_CONNECTION_ERROR"
    cure = "Check that Kafka runs and that broker= (KRQ_BROKER) names its advertised address."


class RedisConnectionError(BrokerConnectionError):
    """Redis could not be reached, or refused the connection."""

    code = "REDIS_CONNECTION_ERROR"
    cure = "Check that Redis or Valkey runs and that backend= (KRQ_BACKEND) names it."


class StoreError(KRQError):
    """Redis answered, but not as KRQ needs: out of memory, wrong version, eviction switched on."""

    code = "STORE_ERROR"


class NamespaceClosed(KRQError):
    """Redis lost its identity (restart, fail-over, flush) and the namespace is being checked."""

    code = "NAMESPACE_CLOSED"
    cure = "It opens by itself within one lease; send again then."


# --- submitting ------------------------------------------------------------------------------


class SubmissionError(KRQError):
    """A message was not accepted. Nothing of it is in the log, unless a subclass says *unknown*."""

    code = "TASK_SUBMISSION_REFUSED"
    task_id: str = ""
    """the id it was sent under, where it got that far"""


class SubmissionTimeout(SubmissionError, TimeoutError):
    """The log did not confirm in time. Whether it has the message is *unknown*.

    Sending again with the same ``task_id`` is safe: a task runs once, however often it is sent.
    """

    code = "TASK_SUBMISSION_TIMEOUT"
    cure = "Send again with the same task_id=, or raise send_timeout."


class ArgumentError(SubmissionError, TypeError):
    """The arguments do not fit the task's signature."""

    code = "TASK_ARGUMENTS_INVALID"
    cure = "Call it as its signature says."


class OptionError(SubmissionError, ValueError):
    """An option of the task or of the call is unknown or has a wrong value."""

    code = "TASK_OPTION_INVALID"


class NotSerializable(SubmissionError, TypeError):
    """An argument or a result cannot be written as JSON."""

    code = "NOT_SERIALIZABLE"
    cure = "Pass numbers, strings, lists, dicts with string keys, dates, or None."


class MessageTooLarge(SubmissionError, ValueError):
    """A message or a result is larger than the limit."""

    code = "MESSAGE_TOO_LARGE"
    cure = "Store the data elsewhere and pass a reference, or raise max_message_bytes."


class MessageInvalid(SubmissionError, ValueError):
    """Bytes that are no KRQ message: not JSON, a wrong shape, nested too deep."""

    code = "MESSAGE_INVALID"
    cure = "See docs/wire-format.md."


class UnknownTask(KRQError, LookupError):
    """No function is registered under this name."""

    code = "TASK_UNKNOWN"
    cure = "Register it with @app.task in a module that the worker imports."


class DuplicateTask(KRQError, ValueError):
    """Two functions claim the same task name."""

    code = "TASK_DUPLICATE"
    cure = "Give one of them another name with @app.task(name=...)."


class BatchError(SubmissionError):
    """Of several messages sent together some were not confirmed."""

    code = "TASK_BATCH_INCOMPLETE"
    cure = "Send those in .failed again, with their ids."

    def __init__(self, cause: str, accepted: list[str], failed: dict[str, Exception]) -> None:
        super().__init__(cause)
        self.accepted = accepted
        """ids that the log has"""
        self.failed = failed
        """ids that it refused, or may have (``SubmissionTimeout``)"""


# --- results ---------------------------------------------------------------------------------


class TaskNotFound(KRQError, LookupError):
    """Redis knows no task of this id: never sent, expired, or purged."""

    code = "TASK_NOT_FOUND"
    cure = "Check the id; finished tasks are kept for result_ttl seconds."


class ResultTimeout(KRQError, TimeoutError):
    """The task did not end within the time given to wait. It goes on."""

    code = "RESULT_TIMEOUT"
    cure = "Wait longer, or ask status() what it is doing."


class TaskFailed(KRQError):
    """The task ended as failed. Carries what went wrong where it ran."""

    code = "TASK_FAILED"

    def __init__(self, task_id: str, kind: str, message: str, traceback: str = "") -> None:
        super().__init__(f"Task {task_id} failed: {kind}: {message}")
        self.task_id = task_id
        self.kind = kind
        """type name of the remote exception, or one of KRQ's codes"""
        self.message = message
        self.traceback = traceback
        """formatted traceback of the worker, "" where there is none"""

    def __str__(self) -> str:
        text = f"{self.cause} [{self.code}]"
        return f"{text}\n\nIn the worker:\n{self.traceback.rstrip()}" if self.traceback else text


class TaskCancelled(KRQError):
    """The task was cancelled before it ended."""

    code = "TASK_CANCELLED"


# --- in a task -------------------------------------------------------------------------------


class AttemptLost(KRQError):
    """The attempt that asked is over for everybody else: the task is another worker's by now, or has ended."""

    code = "ATTEMPT_LOST"
    cure = "Let it pass: whatever this attempt comes to is refused."


class StepLimit(KRQError, ValueError):
    """A task keeps too many steps, or too much in them."""

    code = "STEP_LIMIT"
    cure = "Make fewer, larger steps; keep large data elsewhere and return a reference."


class ChildLimit(KRQError, ValueError):
    """A task makes too many children, or is too deep below others itself."""

    code = "CHILD_LIMIT"


# --- workers ---------------------------------------------------------------------------------


class WorkerInitializationError(KRQError):
    """A worker could not start."""

    code = "WORKER_INITIALIZATION_FAILED"
    cure = "The lines above say what failed; mend it and start the worker again."


class WorkerRecoveryError(KRQError):
    """A worker's children died again and again; it gave up restarting them."""

    code = "WORKER_RECOVERY_FAILED"
    cure = "See the log for what ended them; `krq workers` lists the failures."
