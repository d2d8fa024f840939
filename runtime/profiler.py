"""A profile of chosen steps by `jax.profiler`, for TensorBoard's profile plugin or XProf."""

import logging
import os

import jax

_LOG = logging.getLogger('ordem')


class StepProfiler:
    """Records what devices and host do during a few steps, on the process that writes metrics.

    Args:
      folder: that the profile goes to, under plugins/profile.
      config: the `log` part of an experiment: `profile_from`, `profile_steps`.
    """

    def __init__(self, folder: os.PathLike, config):
        self._folder = os.fspath(folder)
        self._first = config.profile_from
        self._last = config.profile_from + config.profile_steps - 1
        self.is_on = False

    def begin(self, step: int) -> None:
        """Starts to record where `step` is the first one to be recorded."""
        if self._first and step == self._first:
            jax.profiler.start_trace(self._folder)
            self.is_on = True

    def end(self, step: int, metrics) -> None:
        """Ends it after the last step, which is waited for: its `metrics`, arrays on devices."""
        if self.is_on and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()
            _LOG.info('steps %d to %d are profiled in %s', self._first, step, self._folder)

    def close(self) -> None:
        """Ends a profile that the run ends within."""
        if self.is_on:
            self.is_on = False
            jax.profiler.stop_trace()
