"""A page of this machine on which a person drags points and sees what the service makes of them.

The server behind it is `stn playground`; it needs the extra `playground`.
"""

from stn_client.playground._app import application

__all__ = ["application"]
