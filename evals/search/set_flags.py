"""The flags that name sets of questions (evals/search/datasets.py). Nothing here needs JAX."""

from absl import flags

from runtime import options

flags.disclaim_key_flags()  # `--help` shows flags with the command that asked for them


def define_flags() -> None:
    """Defines the flags that name sets."""
    options.paths(
        'squad', "Questions and paragraphs: a JSON file in SQuAD's form; may be given again"
    )
    options.paths('beir', "Queries and documents: a folder in BEIR's form; may be given again")
    options.paths(
        'sts', 'Pairs of sentences: a CSV file of sentence, sentence, score; may be given again'
    )
    flags.DEFINE_bool(
        'pydoc',
        False,
        "Also the set made of Python's documentation; it is taken where no other is given",
    )
