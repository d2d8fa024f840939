"""How a step grows: that what is counted is what the program does."""

from benchmarks import growth


def test_what_is_reduced_along_data():
    """Catches collectives that are not counted, or counted as often as a loop does not run."""
    two = growth.of_devices('data', 2)
    assert {*two['counted']} == {'all-reduce'}
    assert 0 <= two['counted']['all-reduce'] - two['formula'] < 64  # the sums of losses beside them


def test_a_step_is_measured():
    """Catches a step that is not run, and one without temporaries."""
    line = growth.of_length(64)
    assert line['seconds'] > 0 and line['megabytes'] > 0.01
