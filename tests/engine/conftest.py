"""What tests of several parts of the engine start from."""

import pytest
import torch


@pytest.fixture
def any_threads():
    """Gives back the number of threads that torch had."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
