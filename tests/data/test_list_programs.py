"""The bundled task: right answers, disjoint splits, sequences that repeat nothing, noise that propagates."""

import hashlib
import subprocess
import sys
from itertools import islice, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspore_impl.data import list_programs as lp
from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.errors import UserError


def generate(**changes):
    return lp.generate(ListProgramsSet(**{"count": 200} | changes))


def records(**changes):
    return list(generate(**changes))


def problem(record) -> tuple:
    return tuple(record.meta["letters"]), tuple(record.meta["operations"])


def problems(**changes) -> list:
    return [problem(record) for record in records(**changes)]


@pytest.mark.parametrize(("name", "expected"), [
    ("reverse", "ecbda"), ("rotate_left", "dbcea"), ("rotate_right", "eadbc"), ("swap_ends", "edbca"),
    ("swap_first", "dabce"), ("swap_last", "adbec"), ("sort", "abcde"),
])  # fmt: skip
def test_each_operation(name, expected):
    assert lp.execute(list("adbce"), [name]) == list(expected)


def test_a_reasoning_record_works_the_answer_out():
    for record in records(thinking="reasoning"):
        user, assistant = record.messages
        letters, operations = record.meta["letters"], record.meta["operations"]
        assert user.content == f"list {' '.join(letters)} apply {' '.join(operations)}"
        lists = [" ".join(lp.execute(letters, operations[: done + 1])) for done in range(len(operations))]
        assert assistant.reasoning == " ".join(f"{name} {found}" for name, found in zip(operations, lists, strict=True))
        assert assistant.content == record.meta["answer"] == " ".join(lp.execute(letters, operations))
        assert 4 <= len(set(letters)) == len(letters) <= 5 and 1 <= len(operations) <= 3


def test_fast_and_reasoning_sets_hold_the_same_problems():
    fast, slow = records(noise=0.3), records(noise=0.3, thinking="reasoning")
    assert [problem(record) for record in fast] == [problem(record) for record in slow]
    assert [record.messages[-1].content for record in fast] == [record.messages[-1].content for record in slow]
    assert all(record.messages[-1].reasoning is None for record in fast)


def test_splits_share_no_problem_whatever_the_settings():
    seen = {}
    for split in ("train", "validation", "test"):
        seen[split] = set()
        for seed in (0, 1):
            for operations, length in ((1, 4), (3, 5)):
                seen[split] |= set(problems(split=split, seed=seed, operations=operations, length=length, count=250))
    assert len(set.union(*seen.values())) == sum(map(len, seen.values()))


def test_trap_16_the_split_does_not_depend_on_the_process():
    assert problems(count=3, seed=3) == [
        (("d", "l", "k", "h"), ("rotate_right", "reverse", "rotate_left")),
        (("h", "f", "d", "l"), ("swap_last", "rotate_right")),
        (("g", "d", "k", "e", "l"), ("reverse",)),
    ], "a data set that was once made must be made again, so this list never changes"
    digest = hashlib.sha256(repr(problems(count=50, seed=3)).encode()).hexdigest()
    assert digest.startswith("58619f6617194011")
    script = (
        "import hashlib\nfrom mindspore_impl.data import list_programs as lp\n"
        "from mindspore_impl.data.options import ListProgramsSet\n"
        "found = [(tuple(r.meta['letters']), tuple(r.meta['operations']))"
        " for r in lp.generate(ListProgramsSet(count=50), 3)]\n"
        "print(hashlib.sha256(repr(found).encode()).hexdigest())"
    )
    env = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.strip() == digest


def test_ranges_continue_each_other_without_a_repeat():
    whole = problems(count=600)
    assert len(set(whole)) == 600
    assert problems(skip=100, count=300) == whole[100:400]
    assert [record.id for record in records(skip=7, count=1)] == ["list_programs/train/0/7"]
    assert problems(seed=1) != whole[:200]


def test_kinds_are_drawn_evenly():
    counts = {}
    found = problems(count=1200)
    for letters, operations in found:
        counts[len(letters), len(operations)] = counts.get((len(letters), len(operations)), 0) + 1
    assert len(counts) == 6 and all(150 < count < 250 for count in counts.values())
    first = [letters[0] for letters, _ in found]
    assert all(60 < first.count(letter) < 145 for letter in lp.LETTERS)


def test_a_split_is_exhausted_exactly_and_more_is_refused():
    small = {"split": "validation", "operations": 1, "length": 3}
    there = lp.split_size("validation", 1, 3)
    everything = problems(**small, count=there)
    assert len(set(everything)) == there == sum(
        lp.split_of([*letters], [name]) == "validation"
        for size in (2, 3) for letters in permutations(lp.LETTERS, size) for name in lp.NAMES
    )  # fmt: skip
    with pytest.raises(UserError, match=f"holds {there} "):
        generate(**small, skip=1, count=there)  # at once, not when the records are drawn


def test_noise_is_one_swap_that_propagates():
    clean, noisy = records(thinking="reasoning", count=800), records(thinking="reasoning", count=800, noise=0.25)
    changed = 0
    for right, wrong in zip(clean, noisy, strict=True):
        assert wrong.meta == right.meta
        if wrong.messages == right.messages:
            continue
        changed += 1
        state, slips = wrong.meta["letters"], 0
        for step in _steps(wrong):
            expected, found = lp.execute(state, [step[0]]), step[1:]
            if found != expected:
                slips += 1
                at = next(index for index in range(len(found)) if found[index] != expected[index])
                assert found == expected[:at] + [expected[at + 1], expected[at]] + expected[at + 2 :]
            state = found
        assert slips == 1
        assert wrong.messages[-1].content == " ".join(state)
    assert 0.2 < changed / 800 < 0.3
    assert [record.messages for record in records(thinking="reasoning", count=50, noise=0.25)] == [
        record.messages for record in noisy[:50]
    ]


def _steps(record) -> list[list[str]]:
    """The reasoning cut into [operation, letters after it ...]."""
    steps = []
    for word in record.messages[-1].reasoning.split():
        if word in lp.OPERATIONS:
            steps.append([])
        steps[-1].append(word)
    return steps


def test_settings_out_of_range_are_named():
    for key, value in (("split", "tset"), ("count", 0), ("skip", -1), ("noise", 1.5),
                       ("operations", 0), ("length", 2), ("length", 13)):  # fmt: skip
        with pytest.raises(UserError, match=f"{key}: {value}|{key} '{value}'"):
            generate(**{key: value})


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_the_order_is_a_permutation(total, key):
    assert sorted(lp._permuted(total, key)) == list(range(total))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(lp.LETTERS), unique=True, min_size=2, max_size=6),
    st.lists(st.sampled_from(lp.NAMES), max_size=4),
)
def test_programs_permute_their_list(letters, operations):
    before = list(letters)
    assert sorted(lp.execute(letters, operations)) == sorted(letters)
    assert letters == before
    assert lp.execute(lp.execute(letters, ["rotate_left"]), ["rotate_right"]) == letters


def test_many_records_are_made_one_by_one():
    assert sum(1 for _ in generate(count=5000, noise=0.2)) == 5000
    assert len(list(islice(generate(count=10**6), 3))) == 3
