"""The one chat template, shared by post-training and generation.

    <bos><|user|>question<|assistant|>answer<|end|><|user|>...

The marks are control pieces of the tokenizer: no text, whatever it holds, encodes to them. Each content is encoded after a
space, as words are in running text: a model that has learned "▁Londres" has never seen "L", "on", "dres".
"""

from data.records import DataError

ROLES = ('user', 'assistant')


def parse_messages(found: dict) -> tuple[tuple[str, str], ...]:
    """{"messages": [{"role", "content"}]} or {"question"/"prompt", "answer"} -> ((role, content), ...).

    Raises DataError where the object is neither, roles do not alternate from user to assistant, or a content is empty.
    """
    if 'messages' in found:
        try:
            messages = tuple((m['role'], m['content']) for m in found['messages'])
        except (TypeError, KeyError):
            raise DataError('"messages" is not a list of {"role", "content"}') from None
    else:
        ask = found.get('question', found.get('prompt'))
        if ask is None or 'answer' not in found:
            raise DataError('no "messages", no "question" and "answer"')
        messages = (('user', ask), ('assistant', found['answer']))
    for i, (role, content) in enumerate(messages):
        if role != ROLES[i % 2]:
            found = repr(role[:40]) if isinstance(role, str) else f'of type {type(role).__name__}'
            raise DataError(f'message {i + 1} has role {found}, expected {ROLES[i % 2]!r}')
        if not isinstance(content, str) or not content.strip():
            raise DataError(f'message {i + 1} is empty or no string')
    if len(messages) < 2 or len(messages) % 2:
        raise DataError(f'{len(messages)} messages, expected pairs of user and assistant')
    return messages


def encode_messages(messages, tokenizer) -> tuple[list[int], list[int]]:
    """Messages -> token ids, and for each token whether it is answered for: 1 on answers and their end mark, else 0."""
    ids, answered = [tokenizer.bos], [0]
    for role, content in messages:
        piece = tokenizer.encode(' ' + content)
        if role == 'user':
            ids += [tokenizer.user, *piece]
            answered += [0] * (1 + len(piece))
        else:
            ids += [tokenizer.assistant, *piece, tokenizer.end]
            answered += [0, *[1] * (len(piece) + 1)]
    return ids, answered


def encode_prompt(messages, tokenizer) -> list[int]:
    """Messages that end with the user's -> ids that end with the assistant mark, ready to be answered."""
    *before, (_, last) = messages
    ids = encode_messages(before, tokenizer)[0]
    return [*ids, tokenizer.user, *tokenizer.encode(' ' + last), tokenizer.assistant]


def decode_answer(ids, tokenizer) -> str:
    """What the model said, without the space that the template puts first."""
    return tokenizer.decode(ids).removeprefix(' ')
