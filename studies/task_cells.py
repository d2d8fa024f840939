"""A cell whose task is algorithmic: trained on short examples, measured length by length."""

from data.records import DataError
from data.tasks import TaskBatches, build
from evals import attention, lengths
from runtime.errors import RunError


def batches_of(config, task: str, seed: int) -> TaskBatches:
    """Returns the batches of a task for one seed, apart from the seed of the parameters.

    Raises RunError where the task cannot be made.
    """
    t = config.tasks[task]
    try:
        return TaskBatches(
            build(t.task, t.task_args.to_dict()),
            tuple(t.train),
            config.train.batch_size,
            1000 + seed,
            t.scheme,
        )
    except DataError as error:
        raise RunError(f'config.tasks.{task}: {error}') from None


def _test_lengths(config, task: str) -> list[int]:
    test = tuple(config.tasks[task].test)
    first, last, step = test if len(test) == 3 else (1, 0, 1)
    tested = list(range(first, last + 1, step)) if step > 0 else []
    if not tested:
        raise RunError(
            f'config.tasks.{task}.test is {test}: expected (first, last, step) with a length '
            f'between, and a step of at least 1'
        )
    return tested


def sizes(config, task: str) -> tuple[int, int, int]:
    """Returns symbols, tokens of a row of training, and of the longest row of the test.

    Raises RunError where the task has no example so long.
    """
    batches = batches_of(config, task, 0)
    longest = _test_lengths(config, task)[-1]
    try:
        tested = batches.task.size(longest) + 2
    except DataError as error:
        raise RunError(f'config.tasks.{task}: {error}') from None
    return len(batches.task.vocabulary), batches.seq_len, tested


def training(config, group) -> tuple[tuple[int, int, int], list[TaskBatches]]:
    """Returns the sizes of the model, and the batches of each cell."""
    of_cells = [batches_of(config, cell.task, cell.seed) for cell in group]
    return sizes(config, group[0].task), of_cells


def measured(config, cell, model, rows: TaskBatches, params, record: dict) -> dict:
    """Returns the completed record: accuracy at each length, and of seed 1 where it looks."""
    tested = _test_lengths(config, cell.task)
    by_length = lengths.accuracy(model, params, rows, tested, config.test_rows)
    inside = [v for n, v in by_length.items() if rows.low <= n <= rows.high]
    beyond = [v for n, v in by_length.items() if n > rows.high]
    if cell.seed == 1:
        record['attention'] = attention.by_distance(model, params, rows.test(tested[-1], 8))
    return {
        'data': rows.hash,
        **record,
        'validation_nats': _mean(inside, 'nats'),
        'inside': _mean(inside, 'exact'),
        'beyond': _mean(beyond, 'exact'),
        'by_length': {str(n): v for n, v in by_length.items()},
    }


def _mean(results: list[dict[str, float]], field: str) -> float | None:
    return sum(result[field] for result in results) / len(results) if results else None
