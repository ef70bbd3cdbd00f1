"""Atomic writes, journals with torn tails, and locks."""

import json
import os
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

from tinyr1.errors import UserError
from tinyr1.files import Journal, locked, read_json, read_jsonl, write_atomic, write_json


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_write_atomic_keeps_the_old_content_when_writing_fails(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("cut", range(1, 14))
def test_journal_drops_a_torn_last_line_wherever_it_was_cut(tmp_path, cut):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append({"n": 1})
        journal.append({"long": "x"})
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    with Journal(path) as journal:
        assert journal.rows == ([{"n": 1}] if cut < 15 else [])
        journal.append({"n": 3})
    assert [json.loads(x) for x in path.read_text().splitlines()] == [{"n": 1}, {"n": 3}]


def test_journal_refuses_damage_in_the_middle(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(UserError, match="damaged after byte 9"):
        Journal(path)


def test_read_jsonl_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(UserError, match=r"rows.jsonl:3: not valid JSON"):
        list(read_jsonl(path))
    with pytest.raises(UserError, match="no such file"):
        list(read_jsonl(tmp_path / "none"))
    with pytest.raises(UserError, match="directory"):
        list(read_jsonl(tmp_path))


def test_lock_is_exclusive(tmp_path):
    order = []

    def second():
        with locked(tmp_path / "lock"):
            order.append("second")

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(("stream", "code"), [("stdout", 0), ("stderr", 1)])
def test_a_reader_that_leaves_is_no_error_of_standard_output_alone(stream, code):
    """`| head` has what it wants; a log that nobody takes any more is a run that stopped."""
    said = f"[print('x' * 99, file=sys.{stream}) for _ in range(9999)] and None"
    program = f"import sys; from tinyr1.errors import run_main; run_main(lambda: {said})"
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writer}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, **streams)
    os.close(writer)
    assert done.returncode == code
    assert (done.stdout or b"", done.stderr or b"") == (b"", b"")
