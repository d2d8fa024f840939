"""Runs that make vectors of texts, as folders of sentence-transformers.

Around the exported model stands what that package needs to make of a text the vector that the run
makes of it: where it is cut, how it is pooled, and length 1. The tokenizer adds the marks.
"""

from typing import Any

from ml_collections import ConfigDict

from model.embed import trained_length
from runtime.errors import RunError

_POOLINGS = {  # config.embedding.pooling -> field of theirs
    'mean': 'pooling_mode_mean_tokens',
    'last': 'pooling_mode_lasttoken',
    'weighted': 'pooling_mode_weightedmean_tokens',
}
_MODULES = {  # folder -> class
    '': 'Transformer',
    '1_Pooling': 'Pooling',
    '2_Normalize': 'Normalize',
}


def make_files(config: ConfigDict, width: int) -> dict[str, Any]:
    """Returns path -> content of the files of JSON that make a folder one of sentence-transformers.

    Args:
      config: of the run.
      width: numbers of a vector.
    Raises:
      RunError: the run pools otherwise than the package does.
    """
    pooling = config.embedding.pooling
    if pooling not in _POOLINGS:
        raise RunError(
            f'config.embedding.pooling is {pooling!r}: sentence-transformers has '
            f'{", ".join(_POOLINGS)}'
        )
    modules = [
        {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
        for i, (path, kind) in enumerate(_MODULES.items())
    ]
    pooled = {'word_embedding_dimension': width, **dict.fromkeys(_POOLINGS.values(), False)}
    return {
        'modules.json': modules,
        '1_Pooling/config.json': pooled | {_POOLINGS[pooling]: True},
        '2_Normalize/config.json': {},
        'sentence_bert_config.json': {
            'max_seq_length': trained_length(config),
            'do_lower_case': False,
        },
        # A text stands after a space, as words do in running text.
        'config_sentence_transformers.json': {
            'prompts': {'query': ' ', 'document': ' '},
            'default_prompt_name': 'document',
            'similarity_fn_name': 'cosine',
        },
    }
