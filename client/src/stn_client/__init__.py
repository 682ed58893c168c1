"""SDK of the spatial transformer service: remote warps and exact gradients that feel local.

NumPy arrays go in and come out of `Client` and `AsyncClient`; `stn_client.torch` makes the same
calls differentiable for torch. `stn_client.local` starts a server on this machine.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stn_client._api import *  # noqa: F403
    from stn_client._api import __all__ as __all__
    from stn_client._transforms import *  # noqa: F403

    __version__: str
    """Of the distribution stn-client, as "0.1.0"."""
else:

    def __getattr__(name):  # noqa: ANN001, ANN202 - the types are those above
        """Imports all public names when the first one is used: NumPy and gRPC take their time.

        So the command, whose modules lie below, answers an interrupt while they are imported.
        """
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415

            return version("stn-client")
        if name == "__all__" or not name.startswith("_"):
            from importlib import import_module  # noqa: PLC0415

            api = import_module("stn_client._api")
            globals().update({public: getattr(api, public) for public in ("__all__", *api.__all__)})
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():  # noqa: ANN202
        return sorted({*globals(), *__getattr__("__all__")} - {"TYPE_CHECKING"})
