"""The one chat template, of post-training and generation, and the forms of conversations.

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


def parse_messages(found: dict) -> tuple[tuple[str, str], ...]:
    """A record -> ((role, content), ...): perhaps a system, then user and assistant in turn.

    Forms: `messages` or `conversations`, lists of {"role" or "from", "content" or "value"};
    `question`, `prompt` or `instruction` (with `input`) beside `answer`, `completion`, `response`
    or `output`, which are strings or such lists; each with `system`, if it has one. A content is a
    string or a list of parts {"type": "text", "text"}. What is null is absent. What stands before
    the first question (a greeting) and after the last answer is left out.

    Raises DataError where the record has none of these forms, roles do not alternate from user to
    assistant, or a content is empty.
    """
    name, pair = _form(found)
    if name:
        turns = _turns(found[name], name)
    elif pair:
        turns = _asked(found, *pair)
    else:
        raise DataError(f'no conversation: {_unknown(found)}')
    system = found.get(SYSTEM) or found.get('system_prompt')
    if isinstance(system, str) and system.strip() and (not turns or turns[0][0] != SYSTEM):
        turns = [(SYSTEM, system), *turns]
    return _checked(turns)


def holds_conversation(found: dict) -> bool:
    """Whether a record has the fields of a conversation; what they hold may be none."""
    name, pair = _form(found)
    return bool(pair or name and found[name])


def _form(found: dict) -> tuple[str | None, tuple[str, str] | None]:
    """The field that is a list of turns, or the fields that ask and answer."""
    there = {name for name, value in found.items() if value is not None}
    name = next((name for name in _LISTS if name in there), None)
    pair = next((pair for pair in _PAIRS if there.issuperset(pair)), None)
    return (name, None) if name and (found[name] or not pair) else (None, pair)


def _unknown(found: dict) -> str:
    """What a record holds that is no conversation, and the form that is nearest to it."""
    there = fields(found)
    told = f'found {_named(there) if there else "nothing"}'
    if found and not there:
        told = f'found nothing but null in {_named(found)}'
    near = [
        sum(bool(difflib.get_close_matches(field, there, 1, 0.7)) for field in form) / len(form)
        for form in _FORMS
    ]
    if not max(near):
        return f'{told}; expected messages, question and answer, or instruction and output'
    form = ', '.join(f'"{name}"' for name in _FORMS[near.index(max(near))])
    return f'{told}; the nearest form is {{{form}}}'


def fields(found: dict) -> list[str]:
    """The names of the fields of a record that are not null, or the first hundred of them."""
    there = (str(name) for name, value in found.items() if value is not None)
    return list(itertools.islice(there, 100))


def _named(names) -> str:
    """The first names of fields, for a message."""
    some = [_short(name) for name in itertools.islice(names, 4)]
    return ', '.join(some[:3]) + ' and more' * (len(some) > 3)


def _short(name) -> str:
    whole = repr(str(name)[:18])
    return whole if len(whole) <= 20 else f'{whole[:19]}…'


def _asked(found: dict, asks: str, says: str) -> list[tuple[str, object]]:
    """The turns of a record that has a field that asks and one that answers."""
    question, turns = found[asks], []
    if asks == 'instruction':
        turns = _history(found.get('history') or [])
        more = found.get('input') or found.get('context')
        if isinstance(question, str) and isinstance(more, str) and more.strip():
            question = f'{question}\n\n{more}' if question.strip() else more
    for name, role, value in ((asks, 'user', question), (says, 'assistant', found[says])):
        listed = isinstance(value, list) and any(isinstance(v, dict) and _role(v) for v in value)
        turns += _turns(value, name) if listed else [(role, _content(value))]
    return turns


def _history(pairs) -> list[tuple[str, object]]:
    """What was said before, as [asked, answered] pairs."""
    if not isinstance(pairs, list) or any(not isinstance(p, list) or len(p) != 2 for p in pairs):
        raise DataError('"history" is not a list of [question, answer]')
    return [turn for pair in pairs for turn in zip(ROLES, pair)]


def _turns(listed, name: str) -> list[tuple[str, object]]:
    """The turns of a list of messages in the field `name`."""
    if not isinstance(listed, list) or any(not isinstance(turn, dict) for turn in listed):
        raise DataError(f'"{name}" is not a list of {{"role", "content"}}')
    turns = []
    for number, turn in enumerate(listed, 1):
        contents = [turn[key] for key in ('content', 'value', 'text') if turn.get(key) is not None]
        role = _role(turn)
        if role is None:
            raise DataError(
                f'"{name}" is not a list of {{"role", "content"}}: the {number}. has {_named(turn)}'
            )
        turns.append((role, _content(contents[0]) if contents else None))
    return turns


def _role(turn: dict):
    """Who speaks, by our name; the name that is there where it is another, None where there is
    none."""
    role = next((turn[key] for key in ('role', 'from') if turn.get(key) is not None), None)
    return _CALLED.get(role.strip().lower(), role) if isinstance(role, str) else role


def _content(value):
    """A content as a string, where it is one or a list of text parts; else what is there."""
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
            raise DataError(f'a part of a content is of type {_short(kind)}, expected text')
        texts.append(text)
    return '\n'.join(texts)


def _checked(turns: list) -> tuple[tuple[str, str], ...]:
    """The turns from the first question to the last answer, after the system's message if there is
    one. Raises DataError as `parse_messages` does."""
    # What is left out: a blank system message, a greeting, what has no answer.
    numbered = list(enumerate(turns, 1))
    first = numbered[:1] if numbered and numbered[0][1][0] == SYSTEM else []
    rest = numbered[len(first) :]
    if first and (first[0][1][1] is None or _is_blank(first[0][1][1])):
        first = []
    asked = next((i for i, (_, (role, _)) in enumerate(rest) if role != ROLES[1]), len(rest))
    answers = [
        i for i, (_, turn) in enumerate(rest, 1) if turn[0] == ROLES[1] and _is_text(turn[1])
    ]
    last = answers[-1] if answers and answers[-1] > asked else len(rest)
    rest = rest[asked:last]

    # Each turn.
    for i, (number, (role, content)) in enumerate([*first, *rest]):
        wanted = SYSTEM if first and i == 0 else ROLES[(i - len(first)) % 2]
        if role != wanted:
            found = repr(role[:40]) if isinstance(role, str) else f'of type {type(role).__name__}'
            raise DataError(f'message {number} has role {found}, expected {wanted!r}')
        if not _is_text(content):
            raise DataError(f'message {number} is empty or no string')
    if len(rest) < 2:
        count = f'{len(turns)} message{"s" * (len(turns) != 1)}'
        raise DataError(f'{count} and no question that is answered')
    return tuple(turn for _, turn in [*first, *rest])


def _is_text(content) -> bool:
    return isinstance(content, str) and bool(content.strip())


def _is_blank(content) -> bool:
    return isinstance(content, str) and not content.strip()


def first_pair(messages) -> tuple[str, str]:
    """The first question of a conversation and its answer."""
    begin = messages[0][0] == SYSTEM
    return messages[begin][1], messages[begin + 1][1]


def encode_messages(messages, tokenizer) -> tuple[list[int], list[int]]:
    """Messages -> token ids, and for each token whether it is answered for.

    That is 1 on answers and their end marks, else 0.

    Raises DataError where there is a system message and the tokenizer has no mark for it.
    """
    ids, answered = [tokenizer.bos], [0]
    for role, content in messages:
        piece = tokenizer.encode(' ' + line_ends(content))
        if role == 'assistant':
            ids += [tokenizer.assistant, *piece, tokenizer.end]
            answered += [0, *[1] * (len(piece) + 1)]
        else:
            ids += [_system(tokenizer) if role == SYSTEM else tokenizer.user, *piece]
            answered += [0] * (1 + len(piece))
    return ids, answered


def _system(tokenizer) -> int:
    if tokenizer.system is None:
        raise DataError(
            'a system message, and the tokenizer has no mark for one (<|system|>): train a '
            'tokenizer anew (pretraining without config.tokenizer.path), or leave such messages out'
        )
    return tokenizer.system


def system_note(tokenizer) -> str:
    """What there is to say of system messages with a tokenizer; '' where it was made for them."""
    if tokenizer.names_system or tokenizer.system is None:
        return ''
    return (
        'the tokenizer was made before system messages had a mark: <|reserved0|> stands for it, '
        'which a model knows only after post-training on such messages; a new pretraining run '
        'makes <|system|>'
    )


def encode_prompt(messages, tokenizer) -> list[int]:
    """Messages that end with the user's -> ids that end with the assistant mark, ready to be answered."""
    *before, (_, last) = messages
    ids = encode_messages(before, tokenizer)[0]
    return [*ids, tokenizer.user, *tokenizer.encode(' ' + line_ends(last)), tokenizer.assistant]


def decode_answer(ids, tokenizer) -> str:
    """What the model said, without the space that the template puts first."""
    return tokenizer.decode(ids).removeprefix(' ')
