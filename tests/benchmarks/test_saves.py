"""What a save costs: that the measurement measures it."""

from benchmarks import saves


def test_a_save_is_measured(tiny_config, tmp_path, monkeypatch):
    """Catches a benchmark that does not run any more, and a share that leaves out the checksums or
    the copies."""
    from runtime import checkpoint

    clock, save = [0.0], checkpoint.Checkpoints.save
    monkeypatch.setattr(saves.time, 'perf_counter', lambda: clock[0])

    def slow(self, *args):
        clock[0] += 3.0
        save(self, *args)

    monkeypatch.setattr(checkpoint.Checkpoints, 'save', slow)
    step = saves.steps.make_step

    def timed(*args):
        made = step(*args)

        def one(state, batch):
            clock[0] += 2.0
            return made(state, batch)

        return one

    monkeypatch.setattr(saves.steps, 'make_step', timed)
    tiny_config.model.num_layers = 1
    found = saves.measure(tiny_config, 8, 1, tmp_path)
    assert (found['step'], found['blocked'], found['share_of_a_step'], found['rounds']) == (
        2.0,
        3.0,
        1.5,
        1,
    )
    assert found['state_gib'] > 0 and any((tmp_path / 'checkpoints').iterdir())
