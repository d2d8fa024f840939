"""The model that a run trained, with its parameters: its own, and what it has of its parent's."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn, traverse_util

from model import config as model_config, lora
from model.errors import ModelError
from model.transformer import Transformer
from runtime import checkpoint, field_checks
from runtime.checkpoint import describe, path
from runtime.errors import RunError, first_line
from runtime.run_dir import Run
from runtime.transfer import belongs_to_objective, plan_transfer, same_encoding

_SMALL = 2**30  # bytes of a model that is loaded whole


def build_model(run: Run):
    """Returns the model that a run trained, its tokenizer and its config, without its weights."""
    config = run.config()
    tokenizer = run.tokenizer()
    field_checks.check({'model': config.model, 'lora': config.lora})
    jax.devices()  # that there is none is no fault of the run's
    with _blame_config(run):
        architecture = model_config.resolve(config.model, tokenizer.vocab_size, config.data.seq_len)
        return Transformer(architecture), tokenizer, config


@contextlib.contextmanager
def _blame_config(run: Run):
    """Raises RunError in place of whatever a damaged config.json makes a model raise.

    Its fields may be absent, or of another type.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise RunError(f'{run.config_path}: damaged ({first_line(error)})') from None


def abstract_params(model: Transformer):
    """Returns the shapes of a model's parameters, boxed with their logical axes."""
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), token, token, token, token)['params']


def load(run: Run, shardings=None):
    """Returns (model, parameters, tokenizer, config) of a run.

    Everything downstream of training begins with them. Those of a run that trained adapters are
    whole: its parent's, with what was learned added. `shardings`: of the parameters; None: whole,
    on the first device.
    """
    return _load(run, shardings, set())


def _load(run: Run, shardings, seen: set[str]):
    """Returns what `load` does; `seen`: runs whose adapters were trained on those of this one."""
    model, tokenizer, config = build_model(run)
    with _blame_config(run):
        abstract = nn.meta.unbox(abstract_params(model))
    if shardings is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, abstract)
    if config.lora.rank:
        params = _load_adapted(run, model, config, shardings, seen)
    else:
        params = checkpoint.restore_params(run, abstract, shardings)
    return model, params, tokenizer, config


def defer(run: Run):
    """Returns what `load` does, with parameters that are read one by one when they are asked for.

    A small model is there at once, which is faster, and so is what is made of several arrays:
    weights with adapters in them, and layers that lie in one array since they are scanned.
    """
    model, tokenizer, config = build_model(run)
    with _blame_config(run):
        abstract = nn.meta.unbox(abstract_params(model))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    if size < _SMALL or config.lora.rank or config.model.scan_layers:
        return load(run)
    return model, checkpoint.defer_params(checkpoint.pin_step(run), abstract), tokenizer, config


# --- Parameters of a parent -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What a run takes of its parent's parameters, by their paths.

    parent: the parent, at a step.
    shapes: of all of its parameters.
    reused, fresh, dropped: as `runtime.transfer.plan_transfer` returns them.
    """

    parent: Run
    shapes: Any
    reused: list[str]
    fresh: list[str]
    dropped: list[str]

    @property
    def frozen(self) -> frozenset[str]:
        """Returns those that stay the parent's where adapters are trained."""
        return frozenset(name for name in self.reused if not belongs_to_objective(name))

    def read(self, shardings, seen: set[str] | None = None) -> dict[str, jax.Array]:
        """Returns path -> array of what is reused, each where the tree of `shardings` has it.

        `seen`: as of `_load`.
        """
        places = {path(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(shardings)}
        whole = _whole(next(iter(places.values())))

        def place(keys, _):
            return whole if path(keys) in self.dropped else places[path(keys)]

        onto = jax.tree_util.tree_map_with_path(place, self.shapes)
        _, params, _, _ = _load(self.parent, onto, seen or set())
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {path(keys): x for keys, x in leaves if path(keys) not in self.dropped}


def _whole(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Returns the sharding of an array that is whole on all devices of another one's."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())


def plan(parent: Run, child: Transformer) -> Transfer:
    """Returns what a model takes of a parent at a step.

    Raises RunError, before anything is read, where the plan has no place for an array.
    """
    model, _, _ = build_model(parent)
    with _blame_config(parent):
        shapes = nn.meta.unbox(abstract_params(model))
    own = nn.meta.unbox(abstract_params(child))
    same = same_encoding(model.config.encodings, child.config.encodings)
    try:
        return Transfer(parent, shapes, *plan_transfer(describe(shapes), describe(own), same))
    except RunError as error:
        raise RunError(f'{parent.path}: {error}') from None


def _load_adapted(run: Run, model: Transformer, config, shardings, seen: set[str]):
    """Returns the whole parameters of a run that trained adapters; `seen`: as of `_load`."""
    if str(run.path) in seen:
        raise RunError(f'{run.path}: its own ancestor: lineage.json is not what was written')
    with _blame_config(run):
        architecture = lora.adapt(model.config, config.lora)
        adapted = Transformer(architecture)
        abstract = nn.meta.unbox(abstract_params(adapted))
    transfer = plan(open_base(run), adapted)
    frozen = transfer.read(shardings, seen | {str(run.path)})

    # The run's own: factors, which are small, onto all devices; what is new, where it is asked for.
    places = {path(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(shardings)}
    whole = _whole(next(iter(places.values())))
    trained, _ = lora.split(abstract, transfer.frozen)
    onto = jax.tree_util.tree_map_with_path(lambda keys, _: places.get(path(keys), whole), trained)
    own = checkpoint.restore_params(run, trained, onto)

    # What is trained of both is the run's own.
    inherited = {name: x for name, x in frozen.items() if name in transfer.frozen}

    def merge(inherited, own):
        params = lora.join(own, traverse_util.unflatten_dict(inherited, sep='/'))
        return lora.merge(params, architecture.lora.scale)

    return jax.jit(merge, out_shardings=shardings, donate_argnums=0)(inherited, own)


def open_base(run: Run) -> Run:
    """Returns the parent of a run that trained adapters, at the step whose weights they change.

    Raises RunError where it is gone, or has other weights by now.
    """
    then: Any = run.lineage().get('parent')
    try:
        folder, step = str(then['run']), int(then['step'])
    except (TypeError, KeyError, ValueError):
        raise RunError(
            f'{run.lineage_path}: damaged (the parent is {then!r}, expected run and step)'
        ) from None
    try:
        parent = Run.at(folder, step)
    except RunError as error:
        raise no_base(run, f'{folder}@{step}', str(error)) from None
    check_base(run, parent)
    return parent


def check_base(run: Run, parent: Run) -> None:
    """Raises RunError where a parent has other weights than the run's adapters were trained on."""
    name = f'{parent.path}@{parent.step}'
    try:
        now = checkpoint.hash_params(parent)
    except RunError as error:
        raise no_base(run, name, str(error)) from None
    then = run.lineage().get('descent', {}).get('weights')
    if now != then:
        raise no_base(run, name, f'it has other weights now ({now[:12]}, then {str(then)[:12]})')


def no_base(run: Run, parent: str, why: str) -> RunError:
    """Returns what to say where the weights that a run's adapters change are not to be had."""
    return RunError(
        f'{run.path}: holds adapters alone, which change the weights of {parent}: {why}; expected '
        f'that run as it was (apps.merge makes a run that needs no other)'
    )
