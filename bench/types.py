"""The nouns of the harness: frozen dataclasses that every floor above speaks in.

Data flows one way: `Dataset` -> `Example` -> `Request` -> `Generation` -> scores. An `Example` never carries
the text that is to be written; references travel apart, in a `LabeledSplit`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

FieldValue = str | float | None


class Capability(enum.StrEnum):
    """What a method needs from its engine (or, for `TRUTH`, from the dataset); checked before anything loads."""

    TEXT = "text"  # chat messages in, text out
    SOFT_PROMPT = "soft_prompt"  # vectors in place of tokens at named slots of the prompt
    ADAPTER = "adapter"  # a peft adapter folder applied while generating
    TRAIN = "train"  # access to the weights and to gradients
    HIDDEN = "hidden"  # hidden states of a layer, read and changed
    USER_ADAPTER = "user_adapter"  # an adapter of its own for each row of a batch, on top of the batch's
    CONTRAST = "contrast"  # each token chosen by two predictions, with the user's adapter and without
    TRUTH = "truth"  # the dataset knows how its texts were made (planted data only)


@dataclass(frozen=True, slots=True)
class Document:
    """One text that a user wrote."""

    id: str
    """Unique within the dataset."""
    user_id: str
    text: str
    fields: Mapping[str, FieldValue]
    """Values of the task's fields (for a review: item title, item description, rating, review title)."""
    item_id: str | None = None
    timestamp: int | None = None
    """Milliseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to write: what is asked, for whom, and what the user wrote before. Holds no reference text."""

    id: str
    user_id: str
    fields: Mapping[str, FieldValue]
    """Values of the task's fields for the target."""
    history: tuple[Document, ...]
    """The user's earlier documents, oldest first, all strictly before `timestamp`."""
    item_id: str | None = None
    timestamp: int | None = None
    """Milliseconds since the epoch; peers are looked up before this moment."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a task: its key in `Document.fields` and how it is called in a prompt."""

    name: str
    label: str
    shortenable: bool = False
    """Whether a prompt over its budget may cut this value (long descriptions: yes; titles, ratings: no)."""
    of_item: bool = False
    """Whether it describes the item (title, description) and not what the user made of it (rating, review title)."""


@dataclass(frozen=True, slots=True)
class Task:
    """The fields of a task in prompt order, so that methods render prompts without knowing what is written."""

    name: str
    noun: str
    """What is written: "review", "headline"."""
    fields: tuple[Field, ...]
    target_label: str
    """How the text to write is called in a prompt ("Review")."""
    query_fields: tuple[str, ...]
    """Fields of the target that form a retrieval query."""
    document_fields: tuple[str, ...]
    """Fields of a past document that are matched against the query; "text" is what the user wrote."""
    thing: str = "item"
    """What a text is about: "item", "article"."""
    request: str = ""
    """What a prompt asks for, a sentence; empty: the noun, of this thing, in the user's own voice."""

    @property
    def ask(self) -> str:
        """The sentence with which a prompt asks for the text."""
        return self.request or f"Write my {self.noun} of this {self.thing}, in my own voice."


REVIEW_TASK = Task(
    name="review",
    noun="review",
    fields=(
        Field("item_title", "Item title", of_item=True),
        Field("item_description", "Item description", shortenable=True, of_item=True),
        Field("rating", "Rating"),
        Field("title", "Review title"),
    ),
    target_label="Review",
    query_fields=("title", "item_description"),
    document_fields=("title", "item_description"),
)
"""Personalized review generation as in DPL and DEP: title and description of the item, rating, review title."""


@dataclass(frozen=True)
class LabeledSplit:
    """Examples with the texts their users really wrote. Given to `fit` and to metrics, to nothing else."""

    examples: tuple[Example, ...]
    references: Mapping[str, str]
    """Example id -> reference text."""

    def __post_init__(self) -> None:
        missing = [e.id for e in self.examples if e.id not in self.references]
        if missing:
            raise ValueError(f"{len(missing)} examples have no reference text, first: {missing[0]}")

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat prompt."""

    role: str
    content: str


class FloatMatrix(Protocol):
    """Anything numpy or torch can read as a float matrix of shape (positions, hidden size)."""

    @property
    def shape(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How text is drawn. Temperature 0 is greedy decoding."""

    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    """Keeps a measurement's lengths fixed; methods leave it at 0."""


@dataclass(frozen=True)
class Steering:
    """A vector that is added to the residual stream while a text is written."""

    layer: int
    """The layer whose output it is added to; the first is 1."""
    vector: FloatMatrix
    """Shape (1, hidden size)."""
    prompt: bool = False
    """Whether all of the prompt gets it. Otherwise only the positions that a token is drawn from do: the prompt's last
    one and those of the new tokens."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Tokens chosen by what the user's adapter makes likelier: log p - weight * log q, before temperature and top-p.

    p is the prediction with the request's `user_adapter`, q the one without it.
    """

    weight: float
    """How much the prediction without the user's adapter is held against a token."""
    plausibility: float
    """Only tokens with p of at least this share of the largest p are possible; 0 leaves all in."""


@dataclass(frozen=True)
class Request:
    """One call of the language model."""

    example_id: str
    stage: str
    """Name of the step within the method; the last one is "generate"."""
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    """`request_seed(run seed, example id, stage)`: sampling depends on it, not on order or batch."""
    soft: Mapping[str, FloatMatrix] = field(default_factory=dict)
    """Vectors for each `slot(name)` placeholder that stands in the messages."""
    adapter: str | None = None
    """Folder of a peft adapter to generate with."""
    steering: Steering | None = None
    """What is added to hidden states while generating."""
    user_adapter: str | None = None
    """File of the user's own adapter (see `bench.engines.bank`), on top of `adapter`; a batch may hold many."""
    contrast: Contrast | None = None
    """Sets the user's adapter against the model without it, token by token."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What came back for one request."""

    text: str
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    """"stop", "length", "none" (no model was asked) or "error"; of a server also "content_filter", "tool_calls",
    "function_call" or "other"."""
    cached: bool = False
    error: str | None = None
    estimated: bool = False
    """Whether the token counts are guesses, as a server did not tell them."""


class Truth(Protocol):
    """What a synthetic dataset knows about how its texts came to be."""

    def write(self, example_id: str, seed: int) -> str:
        """The text that the example's user would write, from true parameters and fresh noise."""
        ...

    def traits(self, user_id: str) -> Mapping[str, str]:
        """The user's planted traits: name -> value."""
        ...

    def recovered(self, user_id: str, text: str) -> Mapping[str, bool]:
        """For each of the user's traits that a text can show: is it present in this text?"""
        ...


SLOT_OPEN, SLOT_CLOSE = "\ue000", "\ue001"
"""Private-use characters around a slot's name; data sources strip them from texts, so no review can forge a slot."""


def slot(name: str) -> str:
    """The placeholder to put into a message where the soft vectors called `name` go."""
    return f"{SLOT_OPEN}{name}{SLOT_CLOSE}"


def readable_slots(text: str) -> str:
    """A text for people, its soft slots as ⟦name⟧."""
    return text.replace(SLOT_OPEN, "⟦").replace(SLOT_CLOSE, "⟧")
