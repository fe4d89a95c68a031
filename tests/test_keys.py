"""Keys are the same for the same values, differ for different ones, and never depend on order."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.keys import canonical_json, difference, digest, rank_hash, request_seed, text_digest

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3), max_leaves=10)


def turned(value: Any) -> Any:
    """The same value with the entries of every object in reverse order."""
    if isinstance(value, dict):
        return {key: turned(inner) for key, inner in reversed(value.items())}
    return [turned(inner) for inner in value] if isinstance(value, list) else value


@given(values)
def test_canonical_json_reads_back_as_the_value(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@given(values)
def test_the_order_of_keys_changes_neither_text_nor_digest(value: Any) -> None:
    assert canonical_json(turned(value)) == canonical_json(value)
    assert digest(turned(value)) == digest(value)


@given(values, values)
def test_different_values_have_different_digests(a: Any, b: Any) -> None:
    assert (canonical_json(a) == canonical_json(b)) == (digest(a) == digest(b))


def test_canonical_json_is_compact_sorted_and_keeps_letters() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": bad})


@given(values, st.integers(1, 64))
def test_a_digest_is_the_beginning_of_the_sha256(value: Any, length: int) -> None:
    assert digest(value, length) == hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


@given(text)
def test_a_text_digest_is_that_of_its_bytes(value: str) -> None:
    assert text_digest(value) == hashlib.sha256(value.encode()).hexdigest()[:16]


def test_a_text_digest_takes_lone_surrogates() -> None:
    assert text_digest("\ud800") != text_digest("\ud801")


@given(st.integers(), text, text)
def test_a_request_seed_fits_a_signed_64_bit_integer(seed: int, example: str, stage: str) -> None:
    assert 0 <= request_seed(seed, example, stage) < 2**63


@given(st.tuples(st.integers(), text, text), st.tuples(st.integers(), text, text))
def test_a_request_seed_depends_on_run_seed_example_and_stage(a: tuple[int, str, str], b: tuple[int, str, str]) -> None:
    assert (a == b) == (request_seed(*a) == request_seed(*b))


def test_parts_of_a_request_seed_do_not_run_into_one_another() -> None:
    assert request_seed(0, "ab", "c") != request_seed(0, "a", "bc")
    assert request_seed(1, "1", "x") != request_seed(11, "", "x")


def test_seeds_and_ranks_are_the_same_in_another_process() -> None:
    code = "from bench.keys import *; print(request_seed(3, 'u/i', 'generate'), rank_hash(0, 'u'))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{request_seed(3, 'u/i', 'generate')} {rank_hash(0, 'u')}\n"}


@given(st.integers(0, 5), st.integers(0, 5), text, text)
def test_a_rank_depends_on_seed_and_name(a: int, b: int, left: str, right: str) -> None:
    assert ((a, left) == (b, right)) == (rank_hash(a, left) == rank_hash(b, right))


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted path of each leaf (or empty object) -> its value."""
    if not isinstance(value, dict) or not value:
        return {prefix.removesuffix("."): canonical_json(value)}
    return {path: leaf for key, inner in value.items() for path, leaf in flat(inner, f"{prefix}{key}.").items()}


plain = st.dictionaries(
    st.sampled_from("abc"), st.integers(0, 1) | st.dictionaries(st.sampled_from("xy"), st.integers(0, 1), min_size=1)
)


@given(plain, plain)
def test_difference_names_every_path_that_differs_and_no_other(a: dict[str, Any], b: dict[str, Any]) -> None:
    left, right = flat(a) if a else {}, flat(b) if b else {}
    expected = {path for path in left.keys() | right.keys() if left.get(path) != right.get(path)}
    found = difference(a, b)
    assert found == sorted(found)
    # A path to an object stands for all that is below it, when the other side has no object there.
    covered = {path for path in expected if any(path == f or path.startswith(f + ".") for f in found)}
    assert covered == expected
    assert all(any(path == f or path.startswith(f + ".") for path in expected) for f in found)


def test_difference_goes_down_into_objects() -> None:
    assert difference({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}) == ["a.c", "d"]
