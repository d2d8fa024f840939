"""Arrays that are read when they are needed: a model is saved, or written, without being held."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp


@dataclasses.dataclass(frozen=True)
class Deferred:
    """An array that is read whenever numpy asks for it (`np.asarray`), and held by nobody.

    Attributes:
      shape, dtype: of what is read.
      read: reads it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Returns how many numbers it has."""
        return math.prod(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Saves deferred arrays as Orbax does others, each let go of before the next is read."""

    async def serialize(
        self,
        values: Sequence[Deferred],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[ocp.future.Future]:
        for place, value in enumerate(values):
            await self._save(value, infos[place], args and args[place])
        return []

    async def _save(self, value: Deferred, info, arg) -> None:
        for begun in await super().serialize([np.asarray(value)], [info], arg and [arg]):
            begun.result()


def handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what saves a tree of deferred arrays; what it writes is read as any other."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (Deferred, _OneByOne()),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # without one it warns
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
