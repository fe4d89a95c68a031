"""Values from the command line: parsed once, validated by type, refused with the key and the reason."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator

from bench.config import Config, build, parse_overrides, parse_value
from bench.errors import UnknownName, UsageError


class Inner(Config):
    depth: int = 1


class Knobs(Config):
    """What a method may have."""

    count: int = Field(default=8, ge=0)
    rate: float = 0.5
    way: Literal["left", "right"] = "left"
    pair: tuple[int, int] = (1, 2)
    inner: Inner = Inner()
    even: int = 2

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("give an even\nnumber")
        return value


json_values = st.none() | st.booleans() | st.integers() | st.lists(st.integers(), max_size=3)


@given(json_values)
def test_what_is_json_is_read_as_json(value: Any) -> None:
    assert parse_value(json.dumps(value)) == value


@pytest.mark.parametrize("word", ["bm25", "left", "q_proj,v_proj", "0.5.1", "'single'", "", "[1,"])
def test_what_is_no_json_stays_the_text_it_is(word: str) -> None:
    assert parse_value(word) == word


def test_assignments_are_grouped_by_part_and_the_last_one_holds() -> None:
    given_values = ["dep.k=4", "rag.retriever=dense", "dep.tau=0.5", "dep.k=5", 'lora.target_modules=["q_proj"]']
    assert parse_overrides(given_values) == {
        "dep": {"k": 5, "tau": 0.5},
        "rag": {"retriever": "dense"},
        "lora": {"target_modules": ["q_proj"]},
    }


def test_a_part_may_have_dots_and_a_value_may_have_equals_signs() -> None:
    assert parse_overrides(["my.data.noise=a=b.c"]) == {"my.data": {"noise": "a=b.c"}}


@pytest.mark.parametrize("wrong", ["", "dep", "dep.k", "k=4", "=4", ".k=4", "dep.=4", "dep k 4"])
def test_a_malformed_assignment_is_quoted_with_the_right_form(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"NAME\.KEY=VALUE") as error:
        parse_overrides([wrong])
    assert repr(wrong) in str(error.value)


def test_values_are_validated_and_defaults_kept() -> None:
    knobs = build(Knobs, {"count": 3, "pair": [4, 5]}, "knobs")
    assert (knobs.count, knobs.pair, knobs.rate) == (3, (4, 5), 0.5)


def test_an_unknown_key_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UnknownName, match="did you mean 'count'"):
        build(Knobs, {"cuont": 3}, "knobs")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"count": "many"}, "knobs.count = 'many'"),
        ({"count": -1}, "knobs.count = -1"),
        ({"count": 1.5}, "knobs.count = 1.5"),
        ({"rate": float("nan")}, "knobs.rate = nan"),
        ({"rate": float("inf")}, "knobs.rate = inf"),
        ({"way": "up"}, "'left' or 'right'"),
        ({"pair": [1, "x"]}, "knobs.pair.1 = 'x'"),
        ({"inner": {"deep": 1}}, "knobs.inner.deep"),
        ({"even": 3}, "give an even number"),
        ({"count": "x" * 10_000}, "..."),
    ],
)
def test_a_wrong_value_is_one_short_line_with_key_value_and_reason(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        build(Knobs, values, "knobs")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError):
        Knobs().count = 3  # type: ignore[misc]
