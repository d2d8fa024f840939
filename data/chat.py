"""The chat template, of post-training and generation, and the forms of conversations.

Ordem's own, where a tokenizer carries none itself (`data/template.py`):

    <bos><|system|>what holds throughout<|user|>question<|assistant|>answer<|end|><|user|>...

The system's message is there where the conversation begins with one. The marks are control pieces
of the tokenizer: no text, whatever it holds, encodes to them. Each content is encoded after a
space, as words are in running text: a model that has learned "▁Londres" has never seen "L", "on",
"dres".
"""

import difflib
import itertools

from data.records import DataError
from data.text import line_ends

ROLES = ('user', 'assistant')
SYSTEM = 'system'
RULES = 2  # of what is read as a conversation; 1: alternating turns only, "messages" or "answer"
_CALLED = {
    **{name: 'user' for name in ('user', 'human', 'prompter')},
    **{name: 'assistant' for name in ('assistant', 'gpt', 'chatgpt', 'model', 'bot', 'ai')},
    **{name: SYSTEM for name in ('system', 'developer')},
}
_LISTS = ('messages', 'conversations', 'conversation')
_USUAL = (
    ('question', 'answer'),
    ('prompt', 'completion'),
    ('instruction', 'output'),
    ('query', 'response'),
    ('input', 'output'),
)
_ASKED = ('question', 'prompt', 'instruction', 'query')
_SAID = ('answer', 'completion', 'response', 'output')
_PAIRS = (*_USUAL, *itertools.product(_ASKED, _SAID))
_FORMS = (('messages',), ('conversations',), *_USUAL[:3])  # that a message names


def parse_messages(record: dict) -> tuple[tuple[str, str], ...]:
    """Returns ((role, content), ...) of a record: perhaps a system, then user, assistant, in turn.

    Forms: `messages` or `conversations`, lists of {"role" or "from", "content" or "value"};
    `question`, `prompt` or `instruction` (with `input`) beside `answer`, `completion`, `response`
    or `output`, which are strings or such lists; each with `system`, if it has one. A content is a
    string or a list of parts {"type": "text", "text"}. What is null is absent. What stands before
    the first question (a greeting) and after the last answer is left out.

    Raises DataError where the record has none of these forms, roles do not alternate from user to
    assistant, or a content is empty.
    """
    name, pair = _find_form(record)
    if name:
        turns = _read_turns(record[name], name)
    elif pair:
        turns = _read_pair(record, *pair)
    else:
        raise DataError(f'no conversation: {_describe_unknown(record)}')
    system = record.get(SYSTEM) or record.get('system_prompt')
    if isinstance(system, str) and system.strip() and (not turns or turns[0][0] != SYSTEM):
        turns = [(SYSTEM, system), *turns]
    return _check_turns(turns)


def holds_conversation(record: dict) -> bool:
    """Returns whether a record has the fields of a conversation; what they hold may be none."""
    name, pair = _find_form(record)
    return bool(pair or name and record[name])


def _find_form(record: dict) -> tuple[str | None, tuple[str, str] | None]:
    """Returns the field that is a list of turns, or the fields that ask and answer."""
    present = {name for name, value in record.items() if value is not None}
    name = next((name for name in _LISTS if name in present), None)
    pair = next((pair for pair in _PAIRS if present.issuperset(pair)), None)
    return (name, None) if name and (record[name] or not pair) else (None, pair)


def _describe_unknown(record: dict) -> str:
    """Returns the fields of a record that is no conversation, and the form nearest to it."""
    present = fields(record)
    if present or not record:
        message = f'found {_list_names(present) if present else "nothing"}'
    else:
        message = f'found nothing but null in {_list_names(record)}'
    shares = []
    for form in _FORMS:
        near = [bool(difflib.get_close_matches(field, present, 1, 0.7)) for field in form]
        shares.append(sum(near) / len(form))
    if not max(shares):
        return f'{message}; expected messages, question and answer, or instruction and output'
    nearest = ', '.join(f'"{name}"' for name in _FORMS[shares.index(max(shares))])
    return f'{message}; the nearest form is {{{nearest}}}'


def fields(record: dict) -> list[str]:
    """Returns the names of the fields that are not null, a hundred at most."""
    present = (str(name) for name, value in record.items() if value is not None)
    return list(itertools.islice(present, 100))


def _list_names(names) -> str:
    """Returns the first names of fields, for a message."""
    first = [_shorten(name) for name in itertools.islice(names, 4)]
    return ', '.join(first[:3]) + ' and more' * (len(first) > 3)


def _shorten(name) -> str:
    whole = repr(str(name)[:18])
    return whole if len(whole) <= 20 else f'{whole[:19]}…'


def _read_pair(record: dict, asks: str, says: str) -> list[tuple[str, object]]:
    """Returns the turns of a record that has a field that asks and one that answers."""
    question = record[asks]
    turns = []
    if asks == 'instruction':
        turns = _read_history(record.get('history') or [])
        more = record.get('input') or record.get('context')
        if isinstance(question, str) and isinstance(more, str) and more.strip():
            question = f'{question}\n\n{more}' if question.strip() else more
    for name, role, value in ((asks, 'user', question), (says, 'assistant', record[says])):
        if isinstance(value, list) and any(isinstance(v, dict) and _role(v) for v in value):
            turns += _read_turns(value, name)
        else:
            turns.append((role, _content(value)))
    return turns


def _read_history(pairs) -> list[tuple[str, object]]:
    """Returns the turns of what was said before, [question, answer] pairs."""
    if not isinstance(pairs, list) or any(not isinstance(p, list) or len(p) != 2 for p in pairs):
        raise DataError('"history" is not a list of [question, answer]')
    return [turn for pair in pairs for turn in zip(ROLES, pair)]


def _read_turns(listed, name: str) -> list[tuple[str, object]]:
    """Returns the turns of a list of messages in the field `name`."""
    if not isinstance(listed, list) or any(not isinstance(turn, dict) for turn in listed):
        raise DataError(f'"{name}" is not a list of {{"role", "content"}}')
    turns = []
    for number, turn in enumerate(listed, 1):
        contents = [turn[key] for key in ('content', 'value', 'text') if turn.get(key) is not None]
        role = _role(turn)
        if role is None:
            raise DataError(
                f'"{name}" is not a list of {{"role", "content"}}: the {number}. has '
                f'{_list_names(turn)}'
            )
        turns.append((role, _content(contents[0]) if contents else None))
    return turns


def _role(turn: dict):
    """Returns who speaks, by our name.

    A name that is none of those we know is returned as it is; None where there is none.
    """
    role = next((turn[key] for key in ('role', 'from') if turn.get(key) is not None), None)
    return _CALLED.get(role.strip().lower(), role) if isinstance(role, str) else role


def _content(value):
    """Returns a content, which may be a list of text parts, as a string.

    What is neither is returned as it is.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        text = part.get('text') if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get('type') if isinstance(part, dict) else None
            kind = kind if isinstance(kind, str) else type(part).__name__
            raise DataError(f'a part of a content is of type {_shorten(kind)}, expected text')
        texts.append(text)
    return '\n'.join(texts)


def _check_turns(turns: list) -> tuple[tuple[str, str], ...]:
    """Returns the turns from the first question to the last answer.

    The system's message comes first, if there is one. Raises DataError as `parse_messages` does.
    """
    # Left out: a blank system message, a greeting, what has no answer.
    numbered = list(enumerate(turns, 1))
    system = numbered[:1] if numbered and numbered[0][1][0] == SYSTEM else []
    rest = numbered[len(system) :]
    if system and (system[0][1][1] is None or _is_blank(system[0][1][1])):
        system = []
    begin = next((i for i, (_, (role, _)) in enumerate(rest) if role != ROLES[1]), len(rest))
    ends = [
        end
        for end, (_, (role, content)) in enumerate(rest, 1)
        if role == ROLES[1] and _is_text(content)
    ]
    rest = rest[begin : ends[-1] if ends and ends[-1] > begin else len(rest)]

    # Of what is left each turn must be of the role that is due, and say something.
    for i, (number, (role, content)) in enumerate([*system, *rest]):
        due = SYSTEM if system and i == 0 else ROLES[(i - len(system)) % 2]
        if role != due:
            name = repr(role[:40]) if isinstance(role, str) else f'of type {type(role).__name__}'
            raise DataError(f'message {number} has role {name}, expected {due!r}')
        if not _is_text(content):
            raise DataError(f'message {number} is empty or no string')
    if len(rest) < 2:
        count = f'{len(turns)} message{"s" * (len(turns) != 1)}'
        raise DataError(f'{count} and no question that is answered')
    return tuple(turn for _, turn in [*system, *rest])


def _is_text(content) -> bool:
    return isinstance(content, str) and bool(content.strip())


def _is_blank(content) -> bool:
    return isinstance(content, str) and not content.strip()


def first_pair(messages) -> tuple[str, str]:
    """Returns the first question of a conversation and its answer."""
    first = 1 if messages[0][0] == SYSTEM else 0
    return messages[first][1], messages[first + 1][1]


def encode_messages(messages, tokenizer) -> tuple[list[int], list[int]]:
    """Returns token ids, and for each 1 on answers and their end marks, else 0.

    Raises DataError where there is a system message and the tokenizer has no mark for it, or it has
    neither a template of its own nor the marks of ours.
    """
    if tokenizer.template:
        return tokenizer.template.encode_messages(messages)
    _check_marks(tokenizer)
    ids = [tokenizer.bos]
    answered = [0]
    for role, content in messages:
        piece = tokenizer.encode(' ' + line_ends(content))
        if role == 'assistant':
            ids += [tokenizer.assistant, *piece, tokenizer.end]
            answered += [0, *[1] * (len(piece) + 1)]
        else:
            ids += [_system_mark(tokenizer) if role == SYSTEM else tokenizer.user, *piece]
            answered += [0] * (1 + len(piece))
    return ids, answered


def _check_marks(tokenizer) -> None:
    if tokenizer.user is None or tokenizer.assistant is None or tokenizer.end is None:
        raise DataError(
            'the tokenizer has no chat template, and no marks for ours (<|user|>, <|assistant|>, '
            '<|end|>): expected a chat_template.jinja beside its tokenizer.json'
        )


def _system_mark(tokenizer) -> int:
    if tokenizer.system is None:
        raise DataError(
            'a system message, and the tokenizer has no mark for one (<|system|>): train a '
            'tokenizer anew (pretraining without config.tokenizer.path), or leave such messages out'
        )
    return tokenizer.system


def system_note(tokenizer) -> str:
    """Returns what a user should know of system messages; '' where the tokenizer has their mark."""
    if tokenizer.template or tokenizer.names_system or tokenizer.system is None:
        return ''
    return (
        'the tokenizer was made before system messages had a mark: <|reserved0|> stands for it, '
        'which a model knows only after post-training on such messages; a new pretraining run '
        'makes <|system|>'
    )


def encode_prompt(messages, tokenizer) -> list[int]:
    """Returns the token ids of messages that end with the user's, ready to be answered.

    With our marks the last id is the assistant's.
    """
    if tokenizer.template:
        return tokenizer.template.encode_prompt(messages)
    *before, (_, last) = messages
    ids = encode_messages(before, tokenizer)[0]
    return [*ids, tokenizer.user, *tokenizer.encode(' ' + line_ends(last)), tokenizer.assistant]


def decode_answer(ids, tokenizer) -> str:
    """Returns what the model said, without the space that our template puts first."""
    text = tokenizer.decode(ids)
    return text if tokenizer.template else text.removeprefix(' ')


def stop_ids(tokenizer) -> tuple[int, ...]:
    """Returns the ids that end a text: the tokenizer's, and what its template ends answers with."""
    of_template = tokenizer.template.ends if tokenizer.template else ()
    return tuple(dict.fromkeys((*tokenizer.ends, *of_template)))
