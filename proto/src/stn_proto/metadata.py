"""What a caller says of a call beside its message."""

MESSAGE_BYTES = "stn-message-bytes"
"""The size of the serialized request in decimal digits, so that a server can tell whether it has room
for it before it reads it. Optional."""
