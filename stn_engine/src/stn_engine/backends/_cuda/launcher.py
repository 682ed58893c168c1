"""What batches ask of a device."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends._cuda.programs import Program


class Arguments(NamedTuple):
    """What every kernel is called with."""

    items: int
    """Address of the table."""
    starts: int
    """Address of the first tile of every item."""
    tiles: int
    """How many there are in all."""
    rows: int
    """Items in the table."""


class Launcher(Protocol):
    """Compiles programs and runs their kernels, in the order of the calls."""

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Why kernels cannot run on ``device``; empty if they can."""

    def upload(self, words: np.ndarray, device: torch.device) -> Tensor:
        """A copy of 64-bit words that kernels can read; ``words`` may be reused at once."""

    def hold(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Let kernels that are queued now end before the memory of ``tensors`` is given to others.

        For tensors that were made on another stream, and that somebody else may let go of.
        """

    def retain(self, things: object) -> None:
        """Keep for ever what a graph will read at every replay, if one is being captured."""

    def launch(
        self, program: Program, kernel: str, arguments: Arguments, device: torch.device
    ) -> None:
        """Run one kernel over all tiles."""
