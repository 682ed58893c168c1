"""Refuses calls without a known token, before their message is read."""

from __future__ import annotations

from grpc_health.v1 import health

from stn_server.context import Context, Metadata
from stn_server.errors import UnauthenticatedError
from stn_server.reload import Reloaded
from stn_server.tokens import Tokens

HEADER = "authorization"
SCHEME = "Bearer "
OPEN = f"/{health.SERVICE_NAME}/"
"""Health checks need no token. Every other method needs one, also those of services yet to come."""


class Authenticator:
    """Admits calls with a token of the file.

    Args:
        tokens: The tokens, as the file has them by now.
    """

    def __init__(self, tokens: Reloaded[Tokens]) -> None:
        self._tokens = tokens

    def authenticate(self, path: str, context: Context) -> None:
        """Notes the token of a call for `caller_of`.

        Raises:
            UnauthenticatedError: It has none that is known, and its method needs one.
        """
        if path.startswith(OPEN):
            return
        presented = _bearer(context.metadata)
        if presented is None:
            raise UnauthenticatedError("none")
        context.token = self._tokens.current().find(presented)
        if context.token is None:
            raise UnauthenticatedError("an unknown one")


def _bearer(metadata: Metadata) -> str | None:
    """Returns the token that a call presents; None if it presents none."""
    for key, value in metadata:
        if key == HEADER and isinstance(value, str) and value.startswith(SCHEME):
            return value.removeprefix(SCHEME)
    return None
