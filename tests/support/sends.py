"""Tells a test of what a client of either kind sends."""


def noted(transports, note):
    """Transports that tell of every attempt when it has ended: note(call, progress)."""
    send = transports.send

    def send_and_note(call, attempt, progress):
        try:
            return (yield from send(call, attempt, progress))
        finally:
            note(call, progress)

    transports.send = send_and_note
    return transports
