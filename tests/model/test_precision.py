"""Positions and running sums are wide wherever they are used: read off the traced program of every encoding, in bfloat16.

They differ by 1 where they are thousands, and what counts are their differences: a type of 8 bits, or a product that an accelerator
cuts to 8 or 10, makes neighbours the same. What comes from a CPU cannot show it: its products of float32 are whole.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from model import positions
from model.positions import REGISTRY, EncodingInputs
from tests.model.test_properties import BESIDE, SMALL

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2
# Of values in a small range, which a rounding of 1 in 256 moves by little.
BOUNDED = {
    'sin',
    'cos',
    'exp',
    'exp2',
    'logistic',
    'tanh',
    'eq',
    'ne',
    'lt',
    'le',
    'gt',
    'ge',
    'argmax',
    'argsort',
    'is_finite',
    'sign',
}
PLACE, WORDS = (
    'place',
    'words',
)  # a position or a sum over the text; what comes from the text, rounded as all activations are


def forward(encoding, x, q, k, z, where, ids):
    """All that attention calls of an encoding, in its order -> what has to be float32: states, biases, logits."""
    one = jnp.ones(where.shape, jnp.int32)
    param = lambda name, init, shape, axes: init(jax.random.key(0), shape, jnp.float32)
    inputs = EncodingInputs(
        param,
        where,
        where,
        one,
        task_ids=ids,
        k_ids=where,
        k_positions=where,
        k_segment_ids=one,
        x=x,
    )
    for part in encoding.parts:
        if (
            'position_ids' not in part.enters()
        ):  # a table, or drawn: the ids that it gives are positions as they are
            x = part.embed(inputs, x)
    inputs = dataclasses.replace(
        inputs, x=x, shared=encoding.collect_shared({p: p.share(inputs) for p in encoding.parts})
    )
    q, k = encoding.rotate(inputs, q, k)
    inputs = dataclasses.replace(
        inputs,
        state=encoding.key_state(inputs),
        visible=jnp.tril(jnp.ones((1, 1, where.shape[1], where.shape[1]), bool)),
    )
    inputs = dataclasses.replace(inputs, keys_seen=where[:, None] + 1)
    q, k = encoding.read(inputs, encoding.scale(inputs, q), k)
    inputs = dataclasses.replace(inputs, q=q, k=k, z=z)
    inputs = dataclasses.replace(inputs, z=encoding.product(inputs))
    wide = {
        **inputs.state,
        'key_bias': encoding.key_bias(inputs),
        'bias': encoding.bias(inputs),
        'additive': encoding.additive(inputs),
        'logits': encoding.logits(inputs),
    }
    weights = encoding.softmax(inputs, wide['logits'], inputs.visible)
    return {n: a for n, a in wide.items() if a is not None}, (
        x,
        q,
        k,
        weights,
        encoding.value(inputs, weights),
    )


def followed(jaxpr, kinds, faults):
    """What each output of a program is of, PLACE, WORDS or nothing, from what its inputs are of; adds to `faults`."""
    of = dict(zip(jaxpr.invars, kinds))
    for eqn in jaxpr.eqns:
        name, found = (
            eqn.primitive.name,
            [None if hasattr(v, 'val') else of.get(v) for v in eqn.invars],
        )
        narrow = lambda v: jnp.issubdtype(v.aval.dtype, jnp.floating) and v.aval.dtype.itemsize < 4
        inside = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
        if (
            name == 'cumsum'
            and narrow(eqn.invars[0])
            or PLACE in found
            and name == 'convert_element_type'
            and narrow(eqn.outvars[0])
        ):
            faults.append(f'{name} in {eqn.outvars[0].aval.dtype}')
        if name == 'dot_general' and PLACE in found and eqn.params['precision'] != HIGHEST:
            faults.append(
                f'a product of {" and ".join(str(v.aval.shape) for v in eqn.invars)} with precision {eqn.params["precision"]}'
            )
        if inside is not None:
            inside = getattr(inside, 'jaxpr', inside)
            found += [None] * (len(inside.invars) - len(found))
            out = followed(inside, found, faults)
        else:
            seen = (
                found[:1] if name in ('gather', 'dynamic_slice') else found
            )  # of a table: not what it is looked up at
            kind = (
                PLACE
                if name == 'cumsum'
                else None
                if name in BOUNDED or eqn.outvars[0].aval.dtype == bool
                else WORDS
                if WORDS in seen
                else PLACE
                if PLACE in seen
                else None
            )
            out = [kind] * len(eqn.outvars)
        of.update(zip(eqn.outvars, out))
    return [None if hasattr(v, 'val') else of.get(v) for v in jaxpr.outvars]


@pytest.mark.parametrize('name', REGISTRY)
def test_positions_and_sums_are_wide(name):
    """Catches positions in bfloat16 before a floor or a logarithm, a running sum or a state in the type of the activations, a bias that
    is not float32, and a sum of the keys that a query reads, or a distance, in a product of default precision."""
    encoding = positions.build(
        BESIDE.get(name, name), SMALL.get(name, {}), positions.Dims(32, 4, 2, 8, 1, 32)
    )[0]
    low = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    where = jax.ShapeDtypeStruct((1, 6), jnp.int32)
    given = (
        low(1, 6, 32),
        low(1, 4, 6, 8),
        low(1, 2, 6, 8),
        jax.ShapeDtypeStruct((1, 4, 6, 6), jnp.float32),
        where,
        where,
    )
    program, (wide, _) = jax.make_jaxpr(lambda *a: forward(encoding, *a), return_shape=True)(*given)
    faults = [f'{n} is {a.dtype}' for n, a in wide.items() if a.dtype != jnp.float32]
    followed(program.jaxpr, [WORDS] * 4 + [PLACE, None], faults)
    assert not faults
