"""What a call tells about who made it, before its message is looked at."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc.aio

from stn_server.tokens import UNLIMITED, Quota, Token

REQUEST_ID = "x-request-id"

LOCAL = "local"
"""Begins the peers of calls by the local transport."""

MAX_PEERS = 1024
"""Connections of which we remember where they come from."""

Context = grpc.aio.ServicerContext[Any, Any]

presented_token: ContextVar[Token | None] = ContextVar("presented_token", default=None)
"""Of the call that the present task answers; set by `Authenticator`."""

_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    name: str
    """That of the token; without one, of the certificate; else the host, whatever its port, or
    the user of the host, as "uid-1000"."""
    transport: str
    """How its bytes travel: "tcp", "unix" or "local"."""
    quota: Quota = UNLIMITED


def caller_of(context: Context, *, certified: bool = True) -> Caller:
    """Who makes this call.

    Args:
        context: Of the call.
        certified: Whether callers may have certificates; gRPC takes a while to look for one.
    """
    host, token = _host_at(context.peer()), presented_token.get()
    if token is not None:
        return Caller(token.name, host.transport, token.quota)
    name = _certified_name(context) if certified else ""
    return Caller(name, host.transport) if name else host


@lru_cache(MAX_PEERS)
def _host_at(peer: str) -> Caller:
    """The host, or the user of this one, at the other end of a connection."""
    if peer.startswith("unix:"):
        return Caller("unix", "unix")
    if peer.startswith(f"{LOCAL}:"):
        return Caller(peer.removeprefix(f"{LOCAL}:"), LOCAL)
    return Caller(peer.rpartition(":")[0], "tcp")


def _certified_name(context: Context) -> str:
    """That in the certificate which the caller has shown and TLS has verified; nothing without."""
    facts = context.auth_context()
    names = facts.get("x509_common_name") or facts.get("x509_subject_alternative_name") or ()
    return next((name.decode(errors="replace") for name in names), "")


def given_request_id(context: Context) -> str:
    """The caller's id for this call if it has a harmless form, else nothing."""
    metadata = context.invocation_metadata() or ()
    given = next((str(value) for key, value in metadata if key == REQUEST_ID), "")
    return given if _REQUEST_ID_FORM.fullmatch(given) else ""


def request_id_of(context: Context) -> str:
    """The caller's id for this call, or one of ours."""
    return given_request_id(context) or uuid.uuid4().hex[:16]
