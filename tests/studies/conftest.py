"""A small study that is run once."""

import pytest


@pytest.fixture(scope='session')
def study_folder(make_once):
    """The folder of a study that was run with a sweep and a claim: not to be changed."""
    return make_once('study', _run_study)


def _run_study(folder):
    from studies import ablate
    from tests.studies.small_study import small_with_sweep

    ablate.run(small_with_sweep(), folder, workers=0)
