"""Which functions of Python a call enters."""

import gc
import sys


def functions_entered(run):
    """The code of every function of Python that ``run`` enters, once for each entry, in order.

    The collector of garbage waits meanwhile: it would run the finalizers of whatever other tests
    left, in whichever call it happens to be due.
    """
    entered = []

    def note(frame, event, _argument):
        if event == "call":
            entered.append(frame.f_code)

    collects = gc.isenabled()
    gc.disable()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        if collects:
            gc.enable()
    return entered
