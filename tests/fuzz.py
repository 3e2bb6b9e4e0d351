"""What the tests that damage input share: hostile words, damaged bytes, values of JSON, and how many are tried.

In `make test` a few examples of each are tried, always the same ones; `make test-all` tries many.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MANY = 500
WORDS = [
    *("", " ", "-", "--", "nan", "-inf", "inf", "-1", "0", "0.5", "1.5", "1e999", "1e-999", "0x10", str(10**20)),
    *("9" * 5000, "../x", "/", ".", "..", "~", "/dev/null", "a\0b", "\udcff", "x" * 300, "x" * 5000, "ω", "\n"),
    *("a\nb", "\x1b[2J", '{"a": 1}', "[1, 2]", "[" * 3000, "None", "True", "null", "$(id)", "%s%n", "@x", "a=b"),
]
hostile = st.sampled_from(WORDS) | st.text(max_size=20)


def repeated(examples):
    """Not the fixtures but the examples are what changes."""
    return settings(max_examples=examples, suppress_health_check=list(HealthCheck))


FEW_AND_MANY = [
    pytest.param(repeated(60), id="few"),
    pytest.param(repeated(MANY), id="many", marks=pytest.mark.slow),
]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged(draw, whole):
    """Bytes that are not those that were there."""
    place = draw(st.integers(0, len(whole) - 1))
    match draw(st.sampled_from(["flip", "cut", "insert", "remove", "repeat", "blank"])):
        case "flip":
            return whole[:place] + bytes([whole[place] ^ 1 << draw(st.integers(0, 7))]) + whole[place + 1 :]
        case "cut":
            return whole[:place]
        case "insert":
            return whole[:place] + draw(st.binary(min_size=1, max_size=9)) + whole[place:]
        case "remove":
            return whole[:place] + whole[place + draw(st.integers(1, 9)) :]
        case "repeat":
            return whole[:place] + whole[place : place + 9] + whole[place:]
        case _:
            return whole[:place] + bytes(len(whole) - place)
