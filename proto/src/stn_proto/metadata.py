"""What a caller says of a call beside its message."""

MESSAGE_BYTES = "stn-message-bytes"
"""The size of the serialized request in decimal digits. Optional: it lets a server tell whether it
has room for the request before it reads it."""
