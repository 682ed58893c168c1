"""Structured logs on standard error: one record a line, facts as fields."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from grpc import StatusCode

from stn_server.call import CallFacts
from stn_server.config import LogConfig
from stn_server.events import End, Listener
from stn_server.tuning import MAX_REPEATED, MAX_REQUEST_IDS, REPEAT_S

LOGGER = logging.getLogger("stn_server")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, event, then the fields given by `log`."""

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
    """Formats a record as a line of text: time, level, event, `name=value` fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Returns the line that stands before a traceback."""
        fields = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])


def log(level: int, event: str, *, error: BaseException | None = None, **fields: Any) -> None:
    """Writes an event with its facts; `error` adds a traceback."""
    LOGGER.log(level, event, exc_info=error, extra={"fields": fields})


@dataclass(slots=True)
class _Repeated:
    """Failures that are alike and are logged in one line."""

    level: int
    facts: dict[str, Any]
    until: float
    """The instant from which the next failure is logged as the first one was."""
    calls: int = 0
    """How many failures there were since the last line."""
    request_ids: list[str] = field(default_factory=list)
    """The request ids of some of them."""
    timer: asyncio.TimerHandle | None = None


class EventLog(Listener):
    """Logs failed and slow calls, and what becomes of the server.

    Of failures that are alike, the first is logged immediately and the others later, in one line
    with their count. At level debug each is logged.
    """

    def __init__(self) -> None:
        self._repeated: dict[tuple[Any, ...], _Repeated] = {}

    def call_failed(self, call: CallFacts, end: End) -> None:
        """Logs a failed call, with a traceback where the fault is the server's."""
        facts: dict[str, Any] = {"method": call.path, "code": end.code.name}
        facts["caller"] = call.caller.name
        error, level, request_id = None, logging.INFO, ""
        if end.answer is not None:
            error = end.error if end.code is StatusCode.INTERNAL else None
            level, request_id = end.answer.log_level, end.answer.request_id
            kind = end.answer.reason
        elif end.note:
            request_id, kind = call.request_id, end.note
        else:
            return
        if self._has_repeated((*facts.values(), kind, type(error)), level, facts, request_id, end):
            return
        if end.alike > 1:
            facts["calls"] = end.alike
        facts["request_id"] = request_id
        if end.answer is None:
            facts["reason"] = end.note
        log(level, "request failed", error=error, **facts)

    def _has_repeated(
        self,
        key: tuple[Any, ...],
        level: int,
        facts: Mapping[str, Any],
        request_id: str,
        end: End,
    ) -> bool:
        """Counts a failure that is like a recent one; returns whether it is."""
        if LOGGER.isEnabledFor(logging.DEBUG) or not LOGGER.isEnabledFor(level):
            return False
        now, known = time.monotonic(), self._repeated.get(key)
        if known is None or (now >= known.until and not known.calls):
            # The first of its kind, or the first after a pause without any: its caller logs it.
            self._repeated.pop(key, None)
            self._repeated[key] = _Repeated(level, dict(facts), now + REPEAT_S)
            # The oldest kind makes room, and logs what it has counted.
            if len(self._repeated) > MAX_REPEATED:
                self._tell(next(iter(self._repeated)))
            return False
        known.calls += end.alike
        if len(known.request_ids) < MAX_REQUEST_IDS:
            known.request_ids.append(request_id)
        # One line for all that come until then.
        if known.timer is None:
            loop = asyncio.get_running_loop()
            known.timer = loop.call_later(max(0.0, known.until - now), self._tell_again, key)
        return True

    def _tell_again(self, key: tuple[Any, ...]) -> None:
        """Logs how many failures there were, and waits for more of them."""
        known = self._tell(key)
        if known is not None:
            until = time.monotonic() + REPEAT_S
            self._repeated[key] = _Repeated(known.level, known.facts, until)

    def _tell(self, key: tuple[Any, ...]) -> _Repeated | None:
        """Logs how many failures there were since the last line, and forgets them."""
        known = self._repeated.pop(key, None)
        if known is not None and known.calls:
            if known.timer is not None:
                known.timer.cancel()
            facts = {**known.facts, "calls": known.calls, "request_ids": known.request_ids}
            log(known.level, "requests failed alike", **facts)
        return known

    def flush(self) -> None:
        """Logs the failures that were counted and not logged yet."""
        for key in list(self._repeated):
            self._tell(key)

    def call_slow(self, call: CallFacts, end: End) -> None:
        """Logs a slow call: its caller, its time, and how the time was spent."""
        log(
            logging.WARNING,
            "slow call",
            method=call.path,
            code=end.code.name,
            caller=call.caller.name,
            request_id=call.request_id if end.answer is None else end.answer.request_id,
            duration_s=round(end.duration_s, 6),
            queue_s=round(call.queue_s, 6),
            compute_s=round(call.compute_s, 6),
            received_bytes=call.received_bytes,
            sent_bytes=call.sent_bytes,
        )

    def device_lost(self, cause: BaseException) -> None:
        """Logs the loss of the device, after which only a restart helps."""
        log(logging.ERROR, "device lost", error=cause)

    def file_changed(self, name: str, outcome: str, reason: str) -> None:
        """Logs that a file changed, and the reason if it was rejected."""
        if outcome == "accepted":
            log(logging.INFO, "change accepted", file=name)
        else:
            log(logging.ERROR, "change rejected", file=name, reason=reason)


def tell_dropped(count: int) -> None:
    """Logs how many lines before this one were dropped because their reader was too slow."""
    log(logging.WARNING, "log lines dropped", lines=count)


def configure(config: LogConfig) -> None:
    """Sends every record of the process to standard error: ours as configured, others' warnings."""
    logging.captureWarnings(capture=True)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(config.level.upper())
