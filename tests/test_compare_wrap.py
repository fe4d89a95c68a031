"""Text in columns of a terminal: widths, control characters, blocks side by side."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from bench.compare.wrap import beside, columns, wrap

TEXTS = st.text(st.sampled_from("ab \n\t\x1b\u202e漢é\u0301|x"), max_size=80) | st.text(max_size=40)


@given(text=TEXTS, width=st.integers(2, 30))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert all(columns(line) <= width for line in lines)
    assert all(c.isprintable() for line in lines for c in line)
    kept = [c for c in text if c.isprintable() and not c.isspace()]
    assert [c for line in lines for c in line if c != " " and c != "\ufffd"] == [c for c in kept if c != "\ufffd"]


@given(left=TEXTS, right=TEXTS)
def test_blocks_stand_side_by_side(left: str, right: str) -> None:
    a, b = wrap(left, 20), wrap(right, 20)
    lines = beside(a, b, 20)
    assert len(lines) == max(len(a), len(b))
    for i, line in enumerate(lines):
        assert columns(line) <= 43
        if i < len(b) and b[i]:
            assert columns(line.removesuffix(f" | {b[i]}".rstrip())) == 20


def test_wide_letters_and_marks_are_counted_as_a_terminal_does() -> None:
    assert [columns(text) for text in ("abc", "漢字", "e\u0301", "ｗ")] == [3, 4, 1, 2]
    assert unicodedata.east_asian_width("漢") == "W"
