"""Atomic writes, journals with torn tails, and locks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from tinyr1.common.errors import UserError
from tinyr1.common.files import (
    Journal,
    hash_files,
    locked,
    owned,
    read_json,
    read_jsonl,
    read_object,
    write_atomic,
    write_json,
)


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


def test_a_name_that_is_no_utf_8_is_written_and_read_again(tmp_path):
    odd = os.fsdecode(b"bad\xff")
    write_json(tmp_path / "a.json", {"out": odd})
    assert read_json(tmp_path / "a.json") == {"out": odd}
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append({"out": odd})
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.rows == [{"out": odd}]
    (tmp_path / "j.jsonl").write_bytes(b'{"a":\r1}\n')  # white space, no end of a line
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.rows == [{"a": 1}]


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "\xff", '{"a": '])
def test_what_is_no_json_is_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"a.json: not valid JSON \("):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"a.json: expected a JSON object"):
        read_object(path)


@pytest.mark.parametrize("row", ["[1]", "null", '{"other": 1}', "[" * 100_000])
def test_journal_refuses_rows_that_it_never_wrote(tmp_path, row):
    path = tmp_path / "j.jsonl"
    path.write_text('{"n": 1}\n' + row + "\n")
    with pytest.raises(UserError, match="damaged after byte 9"):
        Journal(path, n=int)
    path.write_text('{"n": 1}\n{"n": "two"}\n')
    with pytest.raises(UserError, match=r"damaged after byte 9 \(n='two'\); move it away"):
        Journal(path, n=int)
    if row == "[1]":
        path.write_text(row + "\n")
        with pytest.raises(UserError, match=r"\(expected a JSON object\); move it away"):
            Journal(path)


def test_who_owns_a_folder_removes_what_a_killed_process_was_writing(tmp_path):
    (tmp_path / ".config.json.99.partial").touch()
    (tmp_path / "model.safetensors.partial").touch()  # which may be continued
    with owned(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors.partial"]


def test_a_journal_on_a_full_disk_says_its_name(tmp_path):
    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from tinyr1.common.errors import run_main\n"
        "from tinyr1.common.files import Journal\nimport signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "def main():\n with Journal(Path(sys.argv[1])) as journal:\n"
        "  journal.append(*[{'n': 'x' * 50}] * 9)\n"
        "run_main(main)\n"
    )
    path = tmp_path / "j.jsonl"
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == f"stopped: {path}: File too large\n"


def test_a_failed_write_leaves_nothing_beside(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match=r"taken'$"):  # not the name of the file beside
        write_atomic(tmp_path / "taken", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_hash_files_takes_files_only(tmp_path):
    pipe = tmp_path / "pipe"  # would be read to its end, and be empty the second time
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(UserError, match="expected a file"):
            hash_files([path])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("NotADirectoryError(20, 'Not a directory', 'FILE/out')", 2, "error: FILE/out: Not a d"),
        ("PermissionError(13, 'Permission denied', 'x')", 2, "error: x: Permission denied"),
        ("OSError(28, 'No space left on device', 'x')", 1, "stopped: x: No space left on device"),
        ("OSError(5, 'Input/output error')", 1, "stopped: Input/output error"),
    ],
)
def test_a_path_that_cannot_be_is_bad_input_a_full_disk_is_none(error, code, said):
    program = f"from tinyr1.common.errors import run_main\ndef f(): raise {error}\nrun_main(f)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(said)


def test_closed_and_narrow_streams_cost_nothing(tmp_path):
    program = (
        "from tinyr1.common.errors import run_main; run_main(lambda: print('\\uff5c \\udcff'))"
    )
    narrow = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=narrow
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\uff5c \\udcff\n", "")
    for closing in (">&-", "2>&-", ">&- 2>&-"):
        command = f'"$0" -c "$1" {closing}'
        done = subprocess.run(["bash", "-c", command, sys.executable, program], cwd=ROOT)
        assert done.returncode == 0


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


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [(1, {"a": 1})]
    assert read_json(tmp_path / "a.jsonl") == {"a": 1}


@pytest.mark.parametrize("script", ["train.py", "merge.py", "evaluate.py"])
def test_ctrl_c_during_the_imports_is_quiet(script):
    def as_in_a_terminal():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, ROOT / script, "--help"],
        preexec_fn=as_in_a_terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said


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
    program = f"import sys; from tinyr1.common.errors import run_main; run_main(lambda: {said})"
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writer}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, **streams)
    os.close(writer)
    assert done.returncode == code
    assert (done.stdout or b"", done.stderr or b"") == (b"", b"")
