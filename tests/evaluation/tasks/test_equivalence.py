"""Equal answers of mathematics, and unequal ones that look alike."""

import time

import pytest

from mindspore_impl.evaluation.tasks.arithmetic import NoValue, value
from mindspore_impl.evaluation.tasks.equivalence import equivalent, final_answer

SAME = [
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac12", "1/2"),
    (r"1\frac{1}{2}", "3/2"),
    (r"\sqrt{8}", r"2\sqrt2"),
    (r"45^\circ", "45"),
    ("(1,2)", "(1, 2)"),
    (r"\{1,2\}", r"\{2, 1\}"),
    ("1,2", "2,1"),
    (r"5\text{ cm}", "5"),
    (r"\$5", "5"),
    (r"10\%", "10"),
    ("x=5", "5"),
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    (r"\text{Evelyn}", "Evelyn"),
    ("(C)", r"\text{C}"),
    (r"(-\infty,2]\cup[3,\infty)", r"[3,\infty)\cup(-\infty, 2]"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\begin{pmatrix}1\\ 1/2\end{pmatrix}", r"\begin{pmatrix}1\\0.5\end{pmatrix}"),
    (r"2\pm\sqrt3", r"2+\sqrt{3},2-\sqrt{3}"),
    ("y=2x+3", "2x-y+3=0"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}"),
    (r"3\pi/4", r"\frac{3\pi}{4}"),
    ("2^{10}", "1024"),
    (r"x \in [1,2]", "[1,2]"),
    (r"\left(\frac{1}{2},3\right)", "(0.5,3)"),
    (".5", "0.5"),
    (r"11\sqrt2", r"\sqrt{242}"),
    (r"\boxed{7}", "7"),
    ("50.0", "50"),
    ("p - q", "-q+p"),
    ("12 square inches", "12"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"\sqrt[3]{27}", "3"),
    ("2516_8", "2516_{8}"),
    ("6 - 5i", "6-5i"),
    (r"\frac 59", r"\frac{5}{9}"),
    (r"\log_{2} 8", "3"),
    (r"\binom{5}{2}", "10"),
    (r"18\text{ cm}^2", "18"),
    (r"\text{(B)}", "B"),
    (r"3 \text{ hours}", "3"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"10\text{ m}", "10"),
    ("5x^7", "x^7 5"),
    ("|x-1|", "|1-x|"),
    (r"0 \le x < 1", r"0\leq x<1"),
    (r"k=\frac14", "0.25"),
    ("1 and 2", "2, 1"),
    ("－１，０００．５", "-1000.5"),
    ("（１，２）", "(1,2)"),
    ("答案是１８。", "18"),
    (r"\boxed{\text{共 }18\text{ 个}}", "18"),
    (r"答案：\frac{1}{2}", "0.5"),
    ("x²+1", "x^2+1"),
    (r"5\text{ cm}²", "5"),
]

DIFFERENT = [
    (r"\frac{1}{3}", "0.333"),
    ("(1,2)", "(2,1)"),
    ("[1,2)", "(1,2)"),
    ("x+1", "x+2"),
    ("5", "6"),
    ("cat", "act"),
    ("(1,2)", r"\{1,2\}"),
    ("1,2", "1,2,3"),
    ("", "5"),
    ("x^2", "2x"),
    (r"\text{no}", r"\text{on}"),
    ("2516_8", "2516_7"),
    ("9^{9^{9^{9}}}", "3"),
    ("y=2x+3", "y=2x+4"),
    ("3.14", r"\pi"),
    ("1/0", "1/0+1"),
    ("(" * 500, "5"),
    ("2^{100000}", "2^{100001}"),
    (r"\frac{1}{2}", "12"),
    ("12", "1 2 3"),
    ("x=5", "x=6"),
    ("1,2,2", "1,1,2"),
    ("<", "5"),
    ("1234", "1,23,4"),
    ("①", "1"),
    ("10²", "10"),
    ("18万", "18"),
    ("5小时30分", "5"),
    ("东(西)", "(西)"),
    (r"\text{东}\text{西}", r"\text{西}"),
]


@pytest.mark.parametrize(("one", "other"), SAME + DIFFERENT)
def test_equivalent(one, other):
    assert equivalent(one, other) == equivalent(other, one) == ((one, other) in SAME)


def test_final_answer():
    assert final_answer(r"\boxed{1} then $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert final_answer(r"\fbox {x}") == "x" and final_answer("none") is None and final_answer(r"\boxed{open") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("2+3*4^2", 50), ("-2^2", -4), ("(1+2)(3)", 9), (r"\frac{1}{2}-\frac13", 1 / 6), ("2|-3|", 6), ("5!/3!", 20),
     (r"\sqrt[3]{-8}", -2), (r"\log_2 8".replace("_2", "[2]"), 3), (r"\sin^2 1 + \cos^2 1", 1), ("1/2/2", 0.25)],
)  # fmt: skip
def test_values(text, number):
    assert complex(value(text, {})) == pytest.approx(number)


@pytest.mark.parametrize(
    "text", ["", "2+", "(1", "x", "1/0", "9^{9^{6}}", "3000!", "a.b", r"\unknown{2}", "__import__", "1 + " * 400]
)
def test_no_value(text):
    with pytest.raises(NoValue):
        value(text, {})


HOSTILE = ["(" * 900, "9^" * 300 + "9", "{" * 900, r"\boxed{" * 5000, "1," * 400 + "1", "!" * 900, "5" + "!" * 500,
           r"\frac" * 150 + "1", "9" * 900 + "^" + "9" * 50, "|" * 900, "\\{" * 300 + "\\}" * 300,
           " " * 100000 + "5 cm" * 3000,
           "a" * 50000, "1 cm " * 200 + "x"]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_ends_soon(text):
    """Run under a limit of processor seconds far above what it takes."""
    started = time.process_time()
    assert not equivalent(text, r"\frac{1}{2}")
    assert time.process_time() - started < 10
