"""What whole runs of one file share."""

import pytest

from tests.train.rows import share_initial_states


@pytest.fixture(scope='module')
def shared_initial_states():
    """Draws the first state of a config once for the runs of a file."""
    with pytest.MonkeyPatch.context() as patch:
        share_initial_states(patch)
        yield
