"""Positions and running sums are wide wherever they are used: read off the traced program of every
encoding, in bfloat16.

They differ by 1 where they are thousands, and what counts are their differences: a type of 8 bits,
or a product that an accelerator cuts to 8 or 10, makes neighbours the same. What comes from a CPU
cannot show it: its products of float32 are whole.
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
PLACE = 'place'  # a position or a sum over the text
WORDS = 'words'  # what comes from the text, rounded as all activations are


def forward(encoding, x, q, k, z, where, ids):
    """All that attention calls of an encoding, in its order -> what has to be float32: states,
    biases, logits."""
    one = jnp.ones(where.shape, jnp.int32)
    inputs = EncodingInputs(
        lambda name, init, shape, axes: init(jax.random.key(0), shape, jnp.float32),
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
        # A table, or drawn: the ids that it gives are positions as they are.
        if 'position_ids' not in part.enters():
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
    rest = (x, q, k, weights, encoding.value(inputs, weights))
    return {n: a for n, a in wide.items() if a is not None}, rest


def _is_narrow(variable):
    dtype = variable.aval.dtype
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def followed(jaxpr, kinds, faults):
    """What each output of a program is of, PLACE, WORDS or nothing, from what its inputs are of;
    adds to `faults`."""
    of = dict(zip(jaxpr.invars, kinds))
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        found = [None if hasattr(v, 'val') else of.get(v) for v in eqn.invars]
        inside = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
        narrow_sum = name == 'cumsum' and _is_narrow(eqn.invars[0])
        cast = name == 'convert_element_type' and _is_narrow(eqn.outvars[0])
        if narrow_sum or PLACE in found and cast:
            faults.append(f'{name} in {eqn.outvars[0].aval.dtype}')
        if name == 'dot_general' and PLACE in found and eqn.params['precision'] != HIGHEST:
            faults.append(
                f'a product of {" and ".join(str(v.aval.shape) for v in eqn.invars)} with '
                f'precision {eqn.params["precision"]}'
            )
        if inside is not None:
            inside = getattr(inside, 'jaxpr', inside)
            found += [None] * (len(inside.invars) - len(found))
            out = followed(inside, found, faults)
        else:
            # Of a table it counts what it holds, not what it is looked up at.
            seen = found[:1] if name in ('gather', 'dynamic_slice') else found
            kind = None
            if name == 'cumsum':
                kind = PLACE
            elif name not in BOUNDED and eqn.outvars[0].aval.dtype != bool:
                kind = next((k for k in (WORDS, PLACE) if k in seen), None)
            out = [kind] * len(eqn.outvars)
        of.update(zip(eqn.outvars, out))
    return [None if hasattr(v, 'val') else of.get(v) for v in jaxpr.outvars]


@pytest.mark.parametrize('name', REGISTRY)
def test_positions_and_sums_are_wide(name):
    """Catches positions in bfloat16 before a floor or a logarithm, a running sum or a state in the
    type of the activations, a bias that is not float32, and a sum of the keys that a query reads,
    or a distance, in a product of default precision."""
    encoding = positions.build(
        BESIDE.get(name, name), SMALL.get(name, {}), positions.Dims(32, 4, 2, 8, 1, 32)
    )[0]
    where = jax.ShapeDtypeStruct((1, 6), jnp.int32)
    given = (
        jax.ShapeDtypeStruct((1, 6, 32), jnp.bfloat16),
        jax.ShapeDtypeStruct((1, 4, 6, 8), jnp.bfloat16),
        jax.ShapeDtypeStruct((1, 2, 6, 8), jnp.bfloat16),
        jax.ShapeDtypeStruct((1, 4, 6, 6), jnp.float32),
        where,
        where,
    )
    program, (wide, _) = jax.make_jaxpr(lambda *a: forward(encoding, *a), return_shape=True)(*given)
    faults = [f'{n} is {a.dtype}' for n, a in wide.items() if a.dtype != jnp.float32]
    followed(program.jaxpr, [WORDS] * 4 + [PLACE, None], faults)
    assert not faults
