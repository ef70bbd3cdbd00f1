"""A checkpoint's files must agree with each other, or answers never end."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, run, training_rows, write_rows

from tinyr1.check import faults
from tinyr1.errors import UserError
from tinyr1.tokenizer import Tokenizer


def changed(path, **fields):
    values = json.loads(path.read_text())
    for name, value in fields.items():
        if value is None:
            values.pop(name, None)
        else:
            values[name] = value
    path.write_text(json.dumps(values))


def test_a_sound_checkpoint(tiny):
    assert faults(tiny) == []
    command = [sys.executable, "-m", "tinyr1.check", str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    eos = Tokenizer(tiny).eos_ids()[0]
    assert done.stdout.endswith(
        f"sound; stops at [{eos}], its template does not open the thinking\n"
    )


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("tokenizer_config.json", {"eos_token": "<unk>"}, None),  # generation_config.json has it
        ("tokenizer_config.json", {"chat_template": None}, "no chat template"),
        (
            "config.json",
            {"torch_dtype": "bfloat16"},
            "torch_dtype=bfloat16, the tensors are float32",
        ),
        ("config.json", {"vocab_size": 64}, "but the embedding has 64"),
        ("config.json", {"num_hidden_layers": 3}, "missing"),
    ],
)
def test_what_does_not_fit_is_said(tiny, tmp_path, file, fields, said):
    folder = shutil.copytree(tiny, tmp_path / "m")
    changed(folder / file, **fields)
    found = faults(folder)
    assert any(said in fault for fault in found) if said else not found


def test_an_end_that_nobody_stops_at(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "m")
    changed(folder / "tokenizer_config.json", eos_token="<unk>")
    (folder / "generation_config.json").unlink()
    found = faults(folder)
    assert any("neither stops at" in fault for fault in found)
    assert any("no generation_config.json" in fault for fault in found)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert any("no tokenizer" in fault for fault in faults(folder))
    with pytest.raises(UserError, match="no such file"):
        faults(tmp_path)


def test_an_export_warns_of_what_it_inherits(tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    changed(model / "tokenizer_config.json", chat_template=None)
    data = write_rows(tmp_path / "data.jsonl", training_rows(4))
    arguments = ["--data", data, "--seq-len", 256, "--batch-size", 4, "--max-steps", 1, "--quiet"]
    for source, warned in ((tiny, False), (model, True)):
        done = run(
            "train.py", "math", "--model", source, "--out", tmp_path / f"{warned}", *arguments
        )
        assert done.returncode == 0, done.stderr
        assert ("no chat template" in done.stderr) == warned
