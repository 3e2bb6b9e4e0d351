"""Judges of answers: what is worth the same, and what is not, with tables of golds as the data have them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropyfloor.language.rewards import is_correct, latex
from entropyfloor.language.rewards.answers import Verdict, boxed, letter
from entropyfloor.language.rewards.numbers import number, without_words
from entropyfloor.language.rewards.verdicts import by_letter, by_mathematics, equal

pytest.importorskip("math_verify")

GOLDS = [
    "42",
    "-7",
    r"\frac{1}{2}",
    r"\frac{12}{5,\!525}",
    r"\$32,\!348",
    r"\$\dfrac23 \approx \$0.67",
    "4.5e33",
    r"7.4 \times 10^{-12}",
    "7.2\\%",
    r"30^\circ.",
    r"80^{\circ}",
    "43_5.",
    r"\text{A5}_{11}",
    r"\text{Evelyn}",
    r"\text{(E)},",
    r"7\text{ hours}.",
    r"\approx 8.24 \text{ mph}",
    r"864 \mbox{ inches}^2",
    r"4\!:\!51\!:\!06 \text{ p.m.}",
    r"\frac{7}{5} + \frac{1}{5} i.",
    r"\frac \pi4 + 2 - \sqrt2",
    r"2007 + \frac\pi 2",
    r"\sin^2 t",
    "a + b + c",
    "y = 2x + 3",
    "5x - 7y + 11z + 4 = 0",
    r"$(-\infty, 0) \cup\{1\}$.",
    r"\left( 3, \frac{\pi}{2} \right)",
    r"6 + 8i, 6 + 17i",
    r"x_{0} \cos (\omega t)+$ $\dot{x}_{0} \sin (\omega t) / \omega",
    r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}.",
    r"\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}",
    r"$f(x)=a x+b$, where $b$ is an arbitrary integer, and $a$ is an arbitrary positive integer with $\mho(a)=0$",
    "the correct answer as we normally do, as that would be especially confusing for this problem.",
]
"""One of each shape that the answers of MATH, DAPO, Minerva, OlympiadBench and GSM8K have."""
VARIANTS = {
    "itself": "{}",
    "period": "{}.",
    "dollars": "${}$",
    "spaces": r"\,{}\,\!",
    "approximately": r"\approx {}",
    "unit": r"{} \text{{ cm}}",
    "symbol": r"{} \, J",
}
REFUSED = {
    # What is about already, what is a word, and what is nothing but words.
    "approximately": {r"\approx 8.24 \text{ mph}"},
    "unit": {r"\text{Evelyn}"},
    # A letter behind a number is a unit; behind anything else it may be a variable, or a second unit.
    "symbol": set(GOLDS[8:])
    - {
        r"2007 + \frac\pi 2",
        r"\frac \pi4 + 2 - \sqrt2",
        r"\left( 3, \frac{\pi}{2} \right)",
        "5x - 7y + 11z + 4 = 0",  # a zero, whatever stands behind it
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_golds_are_worth_what_they_say_in_other_dress(variant):
    said = {gold: VARIANTS[variant].format(gold) for gold in GOLDS}
    wrong = {gold for gold in GOLDS if not is_correct(rf"\boxed{{{said[gold]}}}", gold)}
    assert wrong == REFUSED.get(variant, set())


# --- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        (r"x = 2 \times 10^{-27}", r"1.325 \times 10^{-27}"),
        (r"\frac{5}{2004!}", r"\frac{1}{2004!}"),
        (r"\frac{2}{2^{98}}", r"\frac{1}{2^{98}}"),
        (r"1-\frac{1}{2^{98}}", r"1-\frac{2}{2^{98}}"),
        (r"e^{-50}", r"2e^{-50}"),
        (r"(10^{-20}, 1)", r"(2 \cdot 10^{-20}, 1)"),
        (r"[10^{-20}, 1)", r"[2 \cdot 10^{-20}, 1)"),
        (r"(1, 2, 10^{-20})", r"(1, 2, 3 \cdot 10^{-20})"),
        (r"\{1.5 \times 10^{-20}, 2\}", r"\{2, 2.5 \times 10^{-20}\}"),
        (r"x = 10^{-20}, y = 1", r"x = 2 \cdot 10^{-20}, y = 1"),
        (r"x > 1.5 \cdot 10^{-20}", r"x > 2.5 \cdot 10^{-20}"),
        (r"10^{-20} x + y = 0", r"2 \cdot 10^{-20} x + y = 0"),
        (r"\begin{pmatrix} 10^{-20} \\ 1 \end{pmatrix}", r"\begin{pmatrix} 2 \cdot 10^{-20} \\ 1 \end{pmatrix}"),
        (r"\frac{1}{2004!} + 1", r"\frac{5}{2004!} + 1"),
        (r"\sqrt{2} + 10^{-20}", r"\sqrt{2}"),
        (r"\sqrt{2} \cdot 10^{-20}", r"\sqrt{3} \cdot 10^{-20}"),
        (r"-\frac{1}{2^{70}}", r"\frac{1}{2^{70}}"),
        (r"0.0000012", r"\frac{1}{1000000}"),
        ("0", r"\frac{1}{2^{98}}"),
        ("0.0", r"\frac{1}{2^{98}}"),
        (r"1.6 \times 10^{-19} + 1.6 \times 10^{-19}", r"1.6 \times 10^{-19}"),
    ],
)
def test_numbers_that_rounding_makes_one_are_not_one(said, gold):
    assert not equal(said, gold)
    assert not equal(gold, said)


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        (r"\frac{2}{2 \cdot 2004!}", r"\frac{1}{2004!}"),
        (r"\frac{4}{2^{98}}", r"\frac{1}{2^{96}}"),
        (r"\frac{1}{3} \times 10^{-20}", r"3.333333 \times 10^{-21}"),
        (r"\{1.5 \times 10^{-20}, 2.5 \times 10^{-20}\}", r"\{2.5 \times 10^{-20}, 1.5 \times 10^{-20}\}"),
        (r"x = 10^{-20}", r"10^{-20}"),
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"\sqrt{3 + 2\sqrt{2}}", r"1 + \sqrt{2}"),
        (r"2^{-98} x", r"\frac{x}{2^{98}}"),
        ("0.333333", r"\frac{1}{3}"),
        ("0.142857", r"\frac{1}{7}"),
        ("0.012346", r"\frac{1}{81}"),
        ("0.001235", r"\frac{1}{810}"),
        ("1.414214", r"\sqrt{2}"),
        (r"2 \pm \sqrt{3}", r"2 - \sqrt{3}, 2 + \sqrt{3}"),
        (r"\begin{pmatrix} 0.5 \\ 1 \end{pmatrix}", r"\begin{pmatrix} \frac{1}{2} \\ 1 \end{pmatrix}"),
        (r"(-\infty, 2) \cup (3, 4)", r"(-\infty,2)\cup(3,4)"),
        ("2x = 4y", "x - 2y = 0"),
        ("x > 2", "2 < x"),
        ("0.1 + 0.2", "0.3"),
        (r"2.5 \times 10^{-4} x", r"\frac{x}{4000}"),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
        (r"\int_0^1 x dx", r"\frac{1}{2}"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    ],
)
def test_what_is_equal_stays_so(said, gold):
    assert equal(said, gold)


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        (r"12.5\%", "12.5", True),
        ("7.2", r"7.2\%", True),
        (r"12\%", "12", True),
        ("12", r"12\%", True),
        ("0.125", r"12.5\%", True),
        (r"12.5\%", "0.125", True),
        (r"12\%", "0.12", True),
        (r"\frac{25}{2}\%", "12.5", True),
        (r"\frac{25}{2}", r"12.5\%", True),
        (r"50\%", r"\frac{1}{2}", True),
        (r"25 \text{ percent}", r"25\%", True),
        ("25 percent", "0.25", True),
        (r"12\%", r"13\%", False),
        (r"12\%", "1200", False),
        (r"0.125\%", "12.5", False),
        (r"0.12\%", r"12\%", False),
        ("12.5", "0.125", False),
        ("50", r"\frac{1}{2}", False),
    ],
)
def test_per_cent_may_be_left_out_or_be_a_hundredth(said, gold, right):
    assert bool(equal(said, gold)) is right
    assert is_correct(rf"\boxed{{{said}}}", gold) is right


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("1011_2", "1011_2", True),
        ("1011_3", "1011_2", False),
        ("1011_{2}", "1011_2", True),
        (r"1011_{\text{two}}", "1011_2", True),
        ("(1011)_2", "1011_2", True),
        ("01011_2", "1011_2", True),
        ("1011", "1011_2", True),  # the question has the base
        ("1011_2", "1011", True),
        ("11_{10}", "1011_2", False),
        ("1010_2", "1011_2", False),
        ("0.0011_{3}", "0.0011_{2}", False),
        ("1011_2, 5_6", "1011_2, 5_7", False),
        (r"A5_{11}", r"\text{A5}_{11}", True),
        ("BEE_{16}", "BEF_{16}", False),
        ("x_1", "x_2", False),
        ("a_{12}", "a_{13}", False),
        ("a", "a_{12}", False),
        (r"\log_2 8", r"\log_3 27", True),
        ("C_5^2", "C_6^2", False),
    ],
)
def test_digits_have_a_base(said, gold, right):
    assert bool(equal(said, gold)) is right


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("240, 120", "120, 240", True),
        ("120240", "120, 240", False),
        (r"32,\!348", "32348", True),
        ("1 000 000", "1000000", True),
        ("35", "3 5", False),
        ("11/2", "1 1/2", False),
        ("1  1/2", "1 1/2", True),
        ("5 million", "5", False),
        ("5000000", "5 million", True),
        (r"5,000,000", r"5 \text{ million}", True),
        (r"\$2.5 million dollars", "2500000", True),
        (r"5\text{ million dollars}", "5 million", True),
        ("12 hundred", "1.2 Thousand", True),
        ("5 millimetres", "5", True),
        ("5 million", "$5$ million", True),
        ("$5$ million", "5000000", True),
        ("$5$ million", "5", False),
        ("1 million", "1000001", False),  # whole numbers are compared exactly
        ("2 hundred thousand", "200,000", True),
        ("1/2 million", "500000", True),
        ("1/2 million", "1/2000000", False),
        ("1 / 2 million", "500000", True),
        ("1 / 2 million", "1/2000000", False),
        (".5 million", "500000", True),
        (".5 million", "0.5", False),
        ("10^3 million", "10^9", True),
        ("1{,}500 thousand", "1500000", True),
        ("200", "2 hundred thousand", False),
        (r"\frac{1}{2}", r"\frac{1}{2} million", False),
        (r"2\frac{1}{2} million", "2.5 million", True),
        (r"120,\ 240", "120240", False),
        ("$240$, $120$", "$120$, $240$", True),
        ("1011 0101_2", "10110101_2", True),
        (r"10 000\pi", r"10000\pi", True),
        ("(1 000, 2 000)", "(1000, 2000)", True),
    ],
)
def test_several_numbers_and_words_for_powers_of_ten(said, gold, right):
    assert bool(equal(said, gold)) is right


@pytest.mark.parametrize("part", ["1", "1,111", "1.", "1 ", "}", " ", "5 million ", "1, "])
def test_words_for_powers_of_ten_are_found_in_linear_time(part):
    start = time.process_time()
    number(without_words(part * 50_000))
    assert time.process_time() - start < 2


# --- what is written around numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        (r"7.4 \times 10^{-12} \, J", r"7.4 \times 10^{-12}", True),
        (r"E = 7.4 \times 10^{-12} \, J", r"7.4 \times 10^{-12}", True),
        (r"E \approx 7.4 \times 10^{-12} \mathrm{~J}", r"7.4 \times 10^{-12}", True),
        (r"\approx 7.4 \times 10^{-12}", r"7.4 \times 10^{-12}", True),
        (r"7.5 \times 10^{-12} \, J", r"7.4 \times 10^{-12}", False),
        ("10 m/s^2", "10", True),
        (r"10\, \mathrm{m}\, \mathrm{s}^{-1}", "10", True),
        (r"4.7 \, k\Omega", "4.7", True),
        ("0.5 µm", "0.5", True),
        ("30 °C", "30", True),
        ("18 dollars", "18", True),
        ("12 square feet", r"12 \text{ square feet}", True),
        ("5 m", r"5 \text{ m}", True),
        ("5 m", "5 meters", True),
        (r"\frac{37}{4}", r"\frac{37}{4} m", True),
        # Letters that are variables, or another unit.
        ("5 m", "5 s", False),
        ("2t", "2s", False),
        ("4", "4t", False),
        ("3", "3s^2", False),
        (r"\frac12", r"\frac{1}{2}m", False),
        (r"3 s^2", "3s^2", True),
        ("5x", "5", False),
        (r"\frac{1}{m}", r"\frac{1}{m} t", False),
        (r"\pi r^2 h", r"\pi r^2 s", False),
        # A second answer is no unit.
        (r"5 \text{ or 7}", "5", False),
        (r"5 \text{ and } \text{7}", "5", False),
        (r"5 \text{ apples and 3 pears}", "5", False),
    ],
)
def test_units_say_nothing_and_variables_do(said, gold, right):
    assert bool(equal(said, gold)) is right


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("90°", "90"),
        ("90", r"90^\circ"),
        ("2√2", r"2\sqrt{2}"),
        ("√(2)/2", r"\frac{\sqrt{2}}{2}"),
        ("2√3π", r"2\sqrt{3}\pi"),
        ("−5", "-5"),
        ("3 × 10⁸", r"3 \times 10^{8}"),
        ("x² + 1", "1 + x^2"),
        ("3½", "3.5"),
        ("2πr", r"2\pi r"),
        ("α + β", r"\beta + \alpha"),
        ("(−∞, 2] ∪ [3, ∞)", r"(-\infty,2] \cup [3,\infty)"),
        ("x ≤ 3", r"x \leq 3"),
        ("2 ± √3", r"2 \pm \sqrt{3}"),
        ("1011₂", "1011_2"),
        ("２５％", r"25\%"),
    ],
)
def test_signs_of_unicode_are_read(said, gold):
    assert equal(said, gold)


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("2", r"2007 + \frac\pi 2"),
        ("-1", r"\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}"),
        ("-1", r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}."),
        ("0", r"$f(x)=a x+b$, where $b$ is an arbitrary integer, and $a$ is such that $\mho(a)=0$"),
        ("0", r"$(-\infty, 0) \cup\{1\}$."),
        (r"\frac{1}{5}", r"\frac{7}{5} + \frac{1}{5} i."),
    ],
)
def test_a_number_in_a_gold_is_not_the_gold(said, gold):
    assert not is_correct(rf"\boxed{{{said}}}", gold)


@pytest.mark.parametrize("box", [r"\fbox{5}", r"\fbox {5}", r"\boxed{\fbox{5}}", r"\boxed{4} no, \fbox{5}"])
def test_a_frame_is_a_box(box):
    assert boxed(box) == "5"
    assert is_correct(box, "5")


@given(st.text(alphabet="\\{}()[]$%^_.,;: 0123456789abcxJsmABC√½°²₂−π≈", max_size=40))
def test_anything_can_be_read(text):
    tidy = latex.tidy(text)
    latex.without_units(tidy, text)
    latex.numeral(tidy)
    letter(text)
    if text.strip():
        assert equal(text, text)
        assert equal(f" {text} ", text)


def test_an_ellipsis_is_no_period():
    assert latex.tidy(r"1, 2, \ldots") == r"1, 2, \ldots"
    assert [latex.tidy(text) for text in ("1, 2, ...", "x.", "x..", "5,")] == ["1, 2, ...", "x", "x", "5"]


def test_long_answers_take_no_time():
    start = time.process_time()
    for text in ("1 ", "1,", "m ", r"\frac", "{", "√", " .", ",", r"\text{a}", "9", "(1011", "5 kg/", "a_{b} = "):
        answer = latex.tidy(text * 5_000)
        latex.without_units(answer, "5")
        latex.numeral(answer)
        latex.bases(answer)
    assert time.process_time() - start < 5


# --- verdicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold", "correct", "reason"),
    [
        (r"\boxed{4}", "4", True, "same text"),
        (r"\boxed{4.0}", "4", True, "same number"),
        (r"\boxed{4}", "5", False, "different numbers"),
        (r"\boxed{1 + x}", "x + 1", True, "equal by algebra"),
        (r"\boxed{1 + x}", "x + 2", False, "not equal by algebra"),
        (r"\boxed{x = 10^{-27}}", r"2 \cdot 10^{-27}", False, "differ"),
        (r"\boxed{1011_3}", "1011_2", False, "base 3, not 2"),
        (r"\boxed{B. y}", "B", True, "letter B"),
        (r"\boxed{B. y}", "C", False, "letter B, not C"),
        (r"\boxed{}", "4", False, "empty"),
        ("4", "4", False, "no closed"),
    ],
)
def test_a_verdict_says_why(said, gold, correct, reason):
    found = by_mathematics(said, gold)
    assert found.correct is correct
    assert reason in found.reason
    assert (bool(found), float(found)) == (correct, float(correct))


def test_a_verdict_on_letters_says_why():
    assert by_letter("The answer is (B).", "B", 4) == Verdict(True, "the letter B")
    assert by_letter("The answer is (B).", "C", 4) == Verdict(False, "the letter B, not C")
    assert by_letter("The answer is (E).", "C", 4) == Verdict(False, "no letter from A to D is named")


# --- letters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        (r"\text{Option C}", "C", True),
        ("C. $-x$", "C", True),
        ("'C'", "C", True),
        ("(C)", r"\text{(C)},", True),
        (r"\mathbf{C}", "C", True),
        ("B or C", "B", False),
        ("B, C", "B", False),
        ("B/C", "B", False),
        # Letters that are objects of mathematics.
        ("-C", "C", False),
        ("$-C$", "$C$", False),
        ("C", "-C", False),
        ("-C", "- C", True),
        ("|C|", "C", False),
        ("−C", "C", False),
        ("C^2", "C", False),
        ("C + 1", "C", False),
        ("2C", "C", False),
        ("1 + C", "C + 1", True),
        ("C_1", "C", False),
    ],
)
def test_a_letter_is_a_choice_and_an_expression_is_none(said, gold, right):
    assert bool(equal(said, gold)) is right


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("LQXS", "LQSX", False),
        ("L Q S X", "LQSX", True),
        (r"\text{ABC}", "BCA", False),
        ("xyz", "zyx", True),
        ("AB", "BA", True),
        (r"A \cdot C \cdot B", "ABC", True),
    ],
)
def test_three_capitals_are_a_text_and_no_product(said, gold, right):
    assert bool(equal(said, gold)) is right
