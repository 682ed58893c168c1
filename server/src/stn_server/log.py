"""Structured logs on standard error: one record a line, facts as fields."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from grpc import StatusCode

from stn_server.call import CallFacts
from stn_server.config import LogConfig
from stn_server.events import End, Listener

LOGGER = logging.getLogger("stn_server")


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, event, then the fields given by `log`."""

    def format(self, record: logging.LogRecord) -> str:
        """Writes one record as one line of JSON."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class TextFormatter(logging.Formatter):
    """A record for people: time, level, event, `name=value` fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line that stands before a traceback."""
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])


def log(level: int, event: str, *, error: BaseException | None = None, **fields: Any) -> None:
    """Writes an event with its facts; `error` adds a traceback."""
    LOGGER.log(level, event, exc_info=error, extra={"fields": fields})


class EventLog(Listener):
    """Tells the operator what calls failed of, and what became of the server."""

    def call_failed(self, call: CallFacts, end: End) -> None:
        """With a traceback where the fault is ours."""
        facts: dict[str, Any] = {"method": call.path, "code": end.code.name}
        facts["caller"] = call.caller.name
        if end.alike > 1:
            facts["calls"] = end.alike
        if end.answer is not None:
            error = end.error if end.code is StatusCode.INTERNAL else None
            facts["request_id"] = end.answer.request_id
            log(end.answer.log_level, "request failed", error=error, **facts)
        elif end.note:
            facts |= {"request_id": call.request_id, "reason": end.note}
            log(logging.INFO, "request failed", **facts)

    def device_lost(self, cause: BaseException) -> None:
        """Only a restart helps."""
        log(logging.ERROR, "device lost", error=cause)

    def file_changed(self, name: str, outcome: str, reason: str) -> None:
        """Logs that a file changed, and why it is not accepted if it is not."""
        if outcome == "accepted":
            log(logging.INFO, "change accepted", file=name)
        else:
            log(logging.ERROR, "change rejected", file=name, reason=reason)


def tell_dropped(count: int) -> None:
    """Writes that so many lines before this one were lost, as nobody read them."""
    log(logging.WARNING, "log lines dropped", lines=count)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it says more than that gRPC could not send to a caller that has gone meanwhile."""
    error = record.exc_info[1] if record.exc_info else None
    return not (
        record.name == "grpc._cython.cygrpc"
        and type(error).__name__ == "ExecuteBatchError"
        and str(error).startswith('Failed "execute_batch"')
    )


def configure(config: LogConfig) -> None:
    """Sends every record of the process to standard error: ours as configured, others' warnings."""
    logging.captureWarnings(capture=True)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(config.level.upper())
