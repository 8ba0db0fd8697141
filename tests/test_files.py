"""Durable files: old content or new, never half; paths that stay inside."""

import errno
import os
from pathlib import Path

import pytest

from mindspore_impl import files
from mindspore_impl.errors import UserError


def test_failed_write_keeps_the_old_content(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})

    def fails(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"value.json: cannot be written \(No space left on device\)"):
        files.atomic_write(path, fails)
    assert files.read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "below", "x")


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
def test_paths_cannot_leave_their_folder(tmp_path, name):
    with pytest.raises(UserError, match="points outside"):
        files.inside(tmp_path, name)


def test_links_cannot_leave_their_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="points outside"):
        files.inside(tmp_path / "inner", "link/file")
    assert files.inside(tmp_path, "inner/x") == tmp_path / "inner/x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"records.jsonl:2: not valid JSON"),
        (b'{"a": 1}\n[1]\n', r"records.jsonl:2: expected one JSON object a line, found list"),
        (b"", r"records.jsonl: the file holds no record"),
        (b"\n\n", r"the file holds no record"),
        (b"\xff\xfe", r"not UTF-8"),
        (b'{"a": 1}\n' * 5000 + b"\xff", r"records.jsonl:5001: not UTF-8"),  # beyond the first block
        (b'{"a": 1}\n{"a": ' + b"1" * 5000 + b"}", r"records.jsonl:2: .*an integer has too many digits"),
        (b'{"a": 1}\n' + b"[" * 100_000, r"records.jsonl:2: .*nested too deeply"),
    ],
)
def test_malformed_jsonl_names_the_line(tmp_path, content, message):
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(files.read_jsonl(path))


def test_hash_of_equal_json_is_equal():
    assert files.sha256_json({"a": 1, "b": [2]}) == files.sha256_json({"b": [2], "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n}', r"value.json:2: not valid JSON"),
        (b'"' + b"a" * 20_000 + b'\xff"', r"value.json: not UTF-8"),
        (b"1" * 5000, r"value.json: .*an integer has too many digits"),
        (b"[" * 100_000, r"value.json: .*nested too deeply"),
    ],
)
def test_malformed_json_names_the_file(tmp_path, content, message):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        files.read_json(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "value.json"
    path.write_text('{"a": 1}\n', encoding="utf-8-sig")
    assert files.read_json(path) == {"a": 1}
    assert list(files.read_jsonl(path)) == [(1, {"a": 1})]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "a[1]"
    files.new_folder(folder, lambda place: (place / "x").write_text("1"))
    link, neighbour = tmp_path / "link", tmp_path / ".a[1].b.k1lled_x.tmp"
    link.symlink_to(folder)
    neighbour.mkdir()
    (tmp_path / ".a[1].k1lled_x.tmp").mkdir()
    files.new_folder(link, lambda place: (place / "x").write_text("2"), replace=True)
    assert (folder / "x").read_text() == "2" and link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", "link", neighbour.name}, "only what is its own goes"

    real = os.rename

    def refuse(source, target):
        if Path(target) == folder and ".old." not in str(source):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match="cannot be written .No space left"):
        files.new_folder(folder, lambda place: (place / "x").write_text("3"), replace=True)
    assert (folder / "x").read_text() == "2", "what was there stays"


def test_a_disk_without_locks_is_one_message(tmp_path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.raises(UserError, match="cannot be locked .No locks available"):
        files.try_lock(tmp_path / ".lock")


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    kept = ["a/.hidden", "a/b/data.tmp", "a/.lock", "a/b/.x.tmp.json"]
    gone = ["a/.config.yaml.q1.tmp", "a/b/.step_1.zz.tmp/weights", ".top.x.tmp"]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    outside = tmp_path.parent / "outside_leftovers"
    outside.mkdir()
    (outside / "file").write_text("x")
    (tmp_path / ".link.tmp").symlink_to(outside)
    files.remove_leftovers(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
    assert (outside / "file").exists()


def test_a_line_is_read_again_as_it_was_seen_behind_a_byte_order_mark_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\n')
    seen = [(offset, value) for _, offset, value in files.scan_jsonl(tmp_path / "a.jsonl")]
    assert [value for _, value in seen] == [{"a": 1}, {"a": 2}]
    assert [files.read_line(tmp_path / "a.jsonl", offset) for offset, _ in seen] == [{"a": 1}, {"a": 2}]
