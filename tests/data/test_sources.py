"""Files in every format that people have, folders, splits, and a hub with moods."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest
from conftest import call, run, write_rows
from fake_hub import hub

from tinyr1.common.errors import UserError
from tinyr1.data import published
from tinyr1.data.published import file_rows
from tinyr1.data.sources import _split_of, open_sources

ROWS = [{"question": f"Question {i}?", "thinking": "é " * i, "answer": str(i)} for i in range(150)]


def text(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows=ROWS):
    return pytest.importorskip("pyarrow").Table.from_pylist(rows)


def write_arrow(path, rows=ROWS, indexed=False):
    import pyarrow

    make = pyarrow.ipc.new_file if indexed else pyarrow.ipc.new_stream
    with make(str(path), table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=70)


def write_zst(path):
    import pyarrow

    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write(text())


def write_parquet(path, rows=ROWS):
    import pyarrow.parquet as parquet

    parquet.write_table(table(rows), path)


FORMATS = {
    "a.jsonl": lambda path: path.write_bytes(text()),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "a.JSON": lambda path: path.write_bytes(text()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(text())),
    "a.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.jsonl.zst": write_zst,
    "a.parquet": write_parquet,
    "stream.arrow": write_arrow,
    "indexed.arrow": lambda path: write_arrow(path, indexed=True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_same_rows(tmp_path, name):
    pytest.importorskip("pyarrow")
    FORMATS[name](tmp_path / name)
    read = list(file_rows(tmp_path / name))
    assert [row for _, row in read] == ROWS
    assert [number for number, _ in read] == list(range(1, len(ROWS) + 1))
    # Cut in half it is one line that names the file.
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2 + 1])
    with pytest.raises(UserError, match=name):
        list(file_rows(tmp_path / name))


def test_what_save_to_disk_wrote(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one", num_shards=3)
    (source,) = open_sources([str(tmp_path / "one")], tmp_path / "o.jsonl")
    assert [place.row for place in source.rows()] == ROWS
    assert sorted(name.split(" (")[0] for name in source.unread) == [
        "dataset_info.json",
        "state.json",
    ]
    splits = datasets.DatasetDict({"train": data.select(range(9)), "test": data.select([9])})
    splits.save_to_disk(tmp_path / "two")
    for split, count in ((None, 9), ("train", 9), ("test", 1)):
        (source,) = open_sources([str(tmp_path / "two")], tmp_path / "o.jsonl", split=split)
        assert len(list(source.rows())) == count
    with pytest.raises(UserError, match="no file of the split validation; --split names one of"):
        open_sources([str(tmp_path / "two")], tmp_path / "o.jsonl", split="validation")


def test_a_folder_says_what_is_not_read_and_why(tmp_path):
    folder = tmp_path / "set"
    for name in ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(
            folder / name, [{"question": name, "answer": "<think>\na\n</think>\n\n\\boxed{1}"}]
        )
    (folder / "README.md").write_text("words")
    (folder / "dataset_infos.json").write_text('{\n "default": {}\n}')
    (folder / "old.out.rejected.jsonl").write_text("")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.jsonl").write_text("no json")
    out = folder / "old.out.jsonl"
    done = call("tinyr1.data.__main__", "math", "--source", folder, "--out", out)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "not read" in line]
    for said in (
        "README.md (no data format)",
        "dataset_infos.json (one JSON object, no rows)",
        "data/test-00000-of-00001.jsonl (of the split test)",
        "old.out.rejected.jsonl (an output of this command)",
    ):
        assert said in line
    assert ".cache" not in line
    assert json.loads(out.with_suffix(".meta.json").read_text())["rows_in"] == 1


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("train_sft-00000-of-00001.parquet", "train_sft"),
        ("validation/data.jsonl", "validation"),
        ("math_train.jsonl.gz", "train"),
        ("dev.jsonl", "validation"),
        ("human-eval-like.jsonl", ""),
        ("data-00000-of-00002.arrow", ""),
        ("latest.jsonl", ""),
    ],
)
def test_the_split_of_a_file(name, split):
    assert _split_of(Path(name)) == split


def test_what_lies_in_the_hubs_cache_is_named_as_there(tmp_path):
    snapshot = tmp_path / "datasets--owner--set" / "snapshots" / "0123"
    blob = tmp_path / "datasets--owner--set" / "blobs" / "feed"
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(text())
    (snapshot / "a.jsonl").symlink_to(blob)
    for path in (snapshot, snapshot / "a.jsonl"):
        (source,) = open_sources([str(path)], tmp_path / "o.jsonl")
        assert source.origin == "owner/set"


def test_files_without_rows_or_sense(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.csv").write_bytes("question,answer\nübel,x\n".encode("latin-1"))
    (tmp_path / "quote.csv").write_text('question,answer\n"a,b\nc,d\n')
    big = {"question": "q " * 600_000, "thinking": "t", "answer": "\\boxed{1}"}
    write_rows(tmp_path / "big.json", [big, big | {"question": "other?"}])
    for name, said in (
        ("empty.jsonl", "empty.jsonl: no rows"),
        ("latin.csv", "latin.csv: not UTF-8 text"),
        ("quote.csv", "quote.csv: cannot be read (unexpected end of data)"),
    ):
        out = tmp_path / "o.jsonl"
        done = call("tinyr1.data.__main__", "math", "--source", tmp_path / name, "--out", out)
        assert done.returncode == 2
        assert said in done.stderr
    assert not published.is_about_others(tmp_path / "big.json")


def test_a_silent_hub_is_said(tmp_path, monkeypatch):
    """The libraries wait for minutes; we say that we wait."""
    monkeypatch.setattr(published, "PATIENCE", 0.2)
    said = []

    def slow():
        yield 1
        time.sleep(0.6)
        yield 2

    assert list(published._watched(slow(), "--source=a/b", said.append)) == [1, 2]
    assert said == ["--source=a/b: nothing has come from the hub for 0 s; Ctrl-C ends it"]

    def steady():
        for i in range(5):
            time.sleep(0.05)
            yield i

    consumed = []
    for i in published._watched(steady(), "x", said.append):
        time.sleep(0.1)  # the reader's own time is not the hub's
        consumed.append(i)
    assert (len(consumed), len(said)) == (5, 1)


def test_gated_sets_say_how_to_log_in(tmp_path):
    pytest.importorskip("datasets")
    rows = [{"question": "a", "answer": "b"}]
    with hub("owner/name", "train", rows, tmp_path / "cache", gated=True) as names:
        done = run(
            "-m", "tinyr1.data", "math", "--source", "owner/name", "--out", tmp_path / "o.jsonl",
            "--quiet", env=os.environ | names,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for said in ("accept its terms at https://huggingface.co/datasets/owner/name", "hf auth login"):
        assert said in done.stderr
