"""Prompts in one place: how documents are rendered, and how a prompt is brought under its budget."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from bench.errors import UsageError
from bench.method import Context
from bench.types import Document, Example, Field, FieldValue, Message, Task

_SHORTEST = 8
"""Words that a shortened value keeps at least."""
_WORD = re.compile(r"\s*\S{1,24}")
"""What a text is cut by: words with the space before them. Scripts without spaces come in pieces of 24 characters."""


def render_value(value: FieldValue) -> str:
    """A field's value as a person writes it: 4.0 stars are "4"."""
    if isinstance(value, float):
        return f"{value:.15g}"
    return "" if value is None else str(value)


def render_fields(task: Task, thing: Document | Example, of_item: bool | None = None) -> str:
    """One "Label: value" line for each field that has a value, in the task's order.

    `of_item` keeps those that describe the item, or those that do not; None keeps all.
    """
    wanted = (field for field in task.fields if of_item in (None, field.of_item))
    pairs = ((field, render_value(thing.fields.get(field.name))) for field in wanted)
    return "\n".join(f"{field.label}: {value}" for field, value in pairs if value)


def render_documents(task: Task, documents: Sequence[Document], called: str) -> str:
    """Documents one below the other, each with a heading ("Past review 1"), its fields and its text."""
    parts = []
    for number, document in enumerate(documents, 1):
        lines = [f"{called} {number}", render_fields(task, document), f"{task.target_label}: {document.text}"]
        parts.append("\n".join(line for line in lines if line))
    return "\n\n".join(parts)


def conversation(
    task: Task,
    example: Example,
    documents: Sequence[Document],
    after: Callable[[int], str] | None = None,
    note: str = "",
) -> list[Message]:
    """Past documents as turns (fields asked, text answered) in the order given, then the target to be written.

    As turns, because a small model that is shown reviews within one message goes on listing them, while one that
    sees them as its own answers writes another. A document of which nothing is known but its text is asked for as one
    of the user's. `after(i)` may give lines on document i (soft slots, for instance),
    which stand right after its text. `note` is what is known of the user otherwise; it stands right before the target.
    Without documents and note this is the task without anybody's history.
    """
    turns: list[Message] = []
    lead = ""
    for index, document in enumerate(documents):
        told = render_fields(task, document)
        asked = f"{task.ask}\n\n{told}" if told else f"Write one of my {task.noun}s."
        turns.append(Message("user", f"{lead}{asked}"))
        turns.append(Message("assistant", document.text))
        line = after(index) if after else ""
        lead = f"{line}\n\n" if line else ""
    if note:
        lead += f"What is known of me as a writer:\n{note}\n\n"
    return [*turns, Message("user", f"{lead}{task.ask}\n\n{render_fields(task, example)}")]


def one_message(
    task: Task,
    example: Example,
    documents: Sequence[Document],
    after: Callable[[int], str] | None = None,
) -> list[Message]:
    """Everything in one message: what is written about, past documents in the order given, then what the user gave.

    The order in which DPL (ACL 2025) and DEP (EMNLP 2025) lay out a prompt; what to do with it stands in the system
    message. `after` as in `conversation`.
    """
    noun = task.noun
    lines = [
        f"You write a {noun} as one particular user would write it.",
        f"You are told the {task.thing}, {noun}s that the user wrote before, and what is known of the new {noun}.",
        f"Answer with the text of the new {noun} alone, in the user's own voice.",
    ]
    parts = [render_fields(task, example, of_item=True)]
    for index, document in enumerate(documents):
        own = [f"Past {noun} {index + 1}", render_fields(task, document), f"{task.target_label}: {document.text}"]
        parts.append("\n".join(part for part in (*own, after(index) if after else "") if part))
    parts.append("\n".join([f"New {noun}", render_fields(task, example, of_item=False)]))
    return [Message("system", " ".join(lines)), Message("user", "\n\n".join(part for part in parts if part))]


def _cut_words(text: str, words: int) -> str:
    pieces = _WORD.findall(text)
    return text if len(pieces) <= words else "".join(pieces[:words]).strip() + " …"


def _most_words(values: Iterable[object]) -> int:
    return max([_SHORTEST] + [len(_WORD.findall(str(value))) for value in values])


def shortened(task: Task, thing: Document, words: int) -> Document:
    """A document whose text, and whatever fields may be cut, have at most so many words."""
    fields = {name: _cut_field(task, name, value, words) for name, value in thing.fields.items()}
    return dataclasses.replace(thing, fields=fields, text=_cut_words(thing.text, words))


def _cut_field(task: Task, name: str, value: FieldValue, words: int) -> FieldValue:
    by_name: dict[str, Field] = {field.name: field for field in task.fields}
    if isinstance(value, str) and name in by_name and by_name[name].shortenable:
        return _cut_words(value, words)
    return value


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest n in [low, high] that fits, by bisection; None if not even `low` does."""
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


Build = Callable[[Example, Sequence[Document]], Sequence[Message]]
"""(example, documents) -> messages; called again with fewer or shorter documents when over budget."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A prompt within its budget."""

    messages: tuple[Message, ...]
    documents: tuple[Document, ...]
    """The documents that stayed, newest first, some perhaps shortened."""
    tokens: int


def fit_prompt(build: Build, example: Example, documents: Sequence[Document], ctx: Context) -> Fitted:
    """The longest prompt within `ctx.max_prompt_tokens`.

    `documents` come newest first. Over budget, the oldest go first; the last one left is shortened, then goes; at
    last the target's own shortenable fields are cut. What is asked is never dropped. Raises UsageError if even
    that does not fit.
    """

    def fitted(target: Example, kept: Sequence[Document]) -> Fitted:
        messages = tuple(build(target, kept))
        return Fitted(messages, tuple(kept), ctx.engine.count_tokens(messages))

    def fits(candidate: Fitted) -> bool:
        return candidate.tokens <= ctx.max_prompt_tokens

    whole = fitted(example, documents)
    if fits(whole):
        return whole
    count = _largest(0, len(documents), lambda n: fits(fitted(example, documents[:n])))
    if count:
        return fitted(example, documents[:count])
    if count == 0:
        newest = documents[0]
        longest = _most_words([newest.text, *newest.fields.values()])
        words = _largest(_SHORTEST, longest, lambda n: fits(fitted(example, [shortened(ctx.task, newest, n)])))
        return fitted(example, [] if words is None else [shortened(ctx.task, newest, words)])
    return _fit_target(fitted, fits, example, ctx)


def _fit_target(
    fitted: Callable[[Example, Sequence[Document]], Fitted],
    fits: Callable[[Fitted], bool],
    example: Example,
    ctx: Context,
) -> Fitted:
    def shortened(words: int) -> Example:
        fields = {name: _cut_field(ctx.task, name, value, words) for name, value in example.fields.items()}
        return dataclasses.replace(example, fields=fields)

    words = _largest(_SHORTEST, _most_words(example.fields.values()), lambda n: fits(fitted(shortened(n), [])))
    if words is None:
        raise UsageError(
            f"example {example.id}: what is asked takes {fitted(shortened(_SHORTEST), []).tokens} tokens even without "
            f"history, over --max-prompt-tokens {ctx.max_prompt_tokens}; raise it"
        )
    return fitted(shortened(words), [])


Noted = Callable[[Example, Sequence[Document], str], Sequence[Message]]
"""(example, documents, note) -> messages."""


def fit_noted(build: Noted, example: Example, documents: Sequence[Document], note: str, ctx: Context) -> Fitted:
    """As `fit_prompt`, for a prompt with a note on the user: that is shortened once no document is left, then goes."""

    def noted(text: str) -> Build:
        return lambda target, kept: build(target, kept, text)

    def fits(words: int) -> bool:
        return ctx.engine.count_tokens(build(example, [], _cut_words(note, words))) <= ctx.max_prompt_tokens

    longest = _most_words([note])
    if not note or fits(longest):
        return fit_prompt(noted(note), example, documents, ctx)
    words = _largest(_SHORTEST, longest, fits)
    return fit_prompt(noted("" if words is None else _cut_words(note, words)), example, [], ctx)


def fit_texts(
    build: Callable[[Sequence[Document]], Sequence[Message]], documents: Sequence[Document], ctx: Context, what: str
) -> tuple[Message, ...]:
    """The longest prompt that shows all of `documents`: over budget the longest of them are cut to one length.

    Raises UsageError, naming `what` is asked, if not even their beginnings fit.
    """

    def messages(words: int) -> tuple[Message, ...]:
        return tuple(build([shortened(ctx.task, document, words) for document in documents]))

    def fits(words: int) -> bool:
        return ctx.engine.count_tokens(messages(words)) <= ctx.max_prompt_tokens

    values = [value for d in documents for value in (d.text, *d.fields.values())]
    words = _largest(_SHORTEST, _most_words(values), fits)
    if words is None:
        raise UsageError(
            f"{what}: even the first words of what it shows are over --max-prompt-tokens "
            f"{ctx.max_prompt_tokens}; raise it"
        )
    return messages(words)
