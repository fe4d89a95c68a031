"""What people have of a user, peers and a target, as what methods take; what is wrong is told in one line."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.errors import UsageError
from bench.types import SLOT_CLOSE, SLOT_OPEN
from methods.dep.inputs import make_case

DAY = 86_400_000
START = 1_500_000_000_000


def review(item: str = "Thing", text: str = "Good.", **more: Any) -> dict[str, Any]:
    return {"item_title": item, "text": text, **more}


def peer(item: str = "Thing", text: str = "Bad.", user: Any = "p", **more: Any) -> dict[str, Any]:
    return {"user_id": user, **review(item, text, **more)}


ASKED = {"item_title": "Other", "rating": 4, "title": "So so"}


def peers_of(reviews: Any, peers: Any, asked: Any = ASKED) -> list[int]:
    """How many peers each review has that may count, oldest review first."""
    made = make_case(reviews, peers, asked)
    example = made.example
    return [len(made.population.peers(d, example.user_id, example.timestamp)) for d in example.history]


def test_items_are_known_by_id_else_by_title() -> None:
    assert peers_of([review("A"), review("B")], [peer("A"), peer("A", user="q"), peer("C")]) == [2, 0]
    assert peers_of([review("A", item_id="x")], [{"user_id": "p", "item_id": "x", "text": "Bad."}]) == [1]
    assert peers_of([review("A", item_id="x")], [peer("A")]) == [1]
    assert peers_of([review("A")], [peer("A", item_id="x")]) == [1]
    assert peers_of([review("A", item_id="x")], [peer("A", item_id="y")]) == [0]
    assert peers_of([review("A", item_id=7)], [peer("B", item_id="7", user=3)]) == [1]


def test_nobody_is_their_own_peer() -> None:
    assert peers_of([review("A", user_id="me")], [peer("A", user="me"), peer("A", user="p")]) == [1]


def test_times_order_reviews_and_cut_peers_off() -> None:
    first, second = START, START + DAY
    reviews = [review("B", timestamp=second), review("A", timestamp=first)]
    made = make_case(reviews, [], {**ASKED, "timestamp": second + DAY})
    assert [d.fields["item_title"] for d in made.example.history] == ["A", "B"]
    peers = [peer("A", timestamp=second), peer("A", timestamp=second + DAY, user="late")]
    assert peers_of(reviews, peers, {**ASKED, "timestamp": second + DAY}) == [1, 0]
    assert peers_of(reviews, peers) == [2, 0]
    moment = datetime.datetime(2017, 7, 14, 2, 40, tzinfo=datetime.UTC)
    assert make_case([review(timestamp=moment)], [], ASKED).example.history[0].timestamp == START
    assert make_case([review(timestamp=moment.replace(tzinfo=None))], [], ASKED).example.history[0].timestamp == START


def test_without_times_reviews_stand_as_given() -> None:
    made = make_case([review("B"), review("A"), review("B", "Again.")], None, ASKED)
    assert [d.text for d in made.example.history] == ["Good.", "Good.", "Again."]
    assert len({d.id for d in made.example.history}) == 3


def test_what_is_missing_in_a_frame_is_missing() -> None:
    frame = pd.DataFrame([review("A", rating=2.0, title="x"), review("B"), review("C", rating=np.nan)])
    assert [d.fields["rating"] for d in make_case(frame, None, ASKED).example.history] == [2.0, None, None]
    assert [d.fields["title"] for d in make_case(frame, None, ASKED).example.history] == ["x", "", ""]
    scalar = review("A", rating=np.float32(2), item_id=np.int64(4))
    assert make_case([scalar], None, ASKED).example.history[0].item_id == "4"


def test_texts_are_cleaned_as_a_datasets_are_and_forge_no_slot() -> None:
    made = make_case([review("A", f"  one\n two {SLOT_OPEN}history 1{SLOT_CLOSE}\x00")], None, ASKED)
    assert made.example.history[0].text == "one two history 1"


def test_users_without_a_name_differ_by_what_they_wrote() -> None:
    one, two = (make_case([review(text=text)], None, ASKED).example for text in ("x", "y"))
    assert one.id != two.id
    assert make_case([review(text="x")], None, ASKED).example.id == one.id


@pytest.mark.parametrize(
    ("reviews", "peers", "asked", "words"),
    [
        ([review("A"), {"item_title": "B"}], [], ASKED, r"reviews\[1\] has no text"),
        ([review("A", "  ")], [], ASKED, r"reviews\[0\] has no text"),
        ([{"text": "x"}], [], ASKED, r"reviews\[0\] has no item_title"),
        ([], [{"item_title": "A", "text": "x"}], ASKED, r"peers\[0\] has no user_id"),
        ([], [{"user_id": "p", "text": "x"}], ASKED, r"peers\[0\] has no item_title or item_id"),
        ([], [{"user_id": "p", "item_title": "A"}], ASKED, r"peers\[0\] has no text"),
        ([], [], {**ASKED, "text": "Mine."}, "target has a text"),
        ([], [], {"rating": 4}, "target has no item_title"),
        ([], [], "Other", "target is of type str"),
        ([], [], None, "target is of type NoneType"),
        ([review(txt="x")], [], ASKED, r"key of reviews\[0\] 'txt'; did you mean 'text'"),
        ([], [peer(userid="x")], ASKED, r"key of peers\[0\] 'userid'; did you mean 'user_id'"),
        ([], [], {**ASKED, "stars": 3}, "key of target 'stars'"),
        (review(), [], ASKED, "reviews is one dict"),
        ("good", [], ASKED, "reviews is of type str"),
        (["good"], [], ASKED, r"reviews\[0\] is of type str"),
        ([review(rating="four")], [], ASKED, r"reviews\[0\].rating = 'four'"),
        ([review(rating=math.inf)], [], ASKED, r"reviews\[0\].rating"),
        ([review(item_id=" ")], [], ASKED, r"reviews\[0\].item_id"),
        ([review(text=3)], [], ASKED, r"reviews\[0\].text = 3"),
        ([review(timestamp=1_500_000_000)], [], ASKED, r"reviews\[0\].timestamp = 1500000000 .* milliseconds"),
        ([review(timestamp="2017")], [], ASKED, r"reviews\[0\].timestamp = '2017'"),
        ([review(timestamp=START), review()], [], ASKED, r"reviews\[1\] has no timestamp and others have"),
        ([], [peer(timestamp=START), peer()], ASKED, r"peers\[1\] has no timestamp and others have"),
        ([review(timestamp=START)], [], {**ASKED, "timestamp": START}, r"reviews\[0\] is not before the target"),
        ([], [peer()], {**ASKED, "timestamp": START}, "peers have none"),
        ([review(user_id="a"), review(user_id="b")], [], ASKED, "several users"),
        ([review(user_id="a")], [], {**ASKED, "user_id": "b"}, "several users"),
    ],
)
def test_wrong_input_is_told_in_one_line(reviews: Any, peers: Any, asked: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as told:
        make_case(reviews, peers, asked)
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match=r"^(unknown key of )?cases\[2\]: "):
        make_case(reviews, peers, asked, where="cases[2]: ")
