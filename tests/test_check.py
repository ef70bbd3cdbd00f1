"""A checkpoint's files must agree with each other, or answers never end."""

import contextlib
import itertools
import json
import math
import shutil

import pytest
from conftest import run, training_rows, write_rows
from safetensors.torch import load_file, save_file

from tinyr1.check import faults
from tinyr1.common.errors import UserError
from tinyr1.model.config import Qwen2Config
from tinyr1.model.tokenizer import Tokenizer


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
    done = run("-m", "tinyr1.check", tiny)
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
        ("config.json", {"eos_token_id": [0, 5]}, None),
        ("config.json", {"torch_dtype": ["float32"]}, "torch_dtype=['float32']"),
        ("tokenizer_config.json", {"chat_template": ""}, "no chat template"),
        ("tokenizer_config.json", {"chat_template": [{"name": "tool_use"}]}, "no chat template"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "default", "template": "x"}]},
            None,
        ),
        ("generation_config.json", {"eos_token_id": [0, 10**6]}, "stop tokens [1000000]"),
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


def test_weights_that_are_no_numbers(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    assert faults(folder) == ["model.norm.weight: NaN or infinity in it"]


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("{{ '<|Assistant|>' }}", False),
        ("{{ '<|Assistant|><think>\\n' }}", True),
        ("{{ 'a' }}{% if not enable_thinking %}{{ '<think>\\n\\n</think>' }}{% endif %}", False),
        ("{% if a %}{{ '<think>\\n\\n</think>' }}{% else %}{{ '<think>\\n' }}{% endif %}", True),
    ],
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "jinja"])
def test_whether_a_template_opens_the_thinking(tiny, tmp_path, file, prompt, opens):
    folder = shutil.copytree(tiny, tmp_path / "m")
    template = "{{ '<think>' }}{% if add_generation_prompt %}" + prompt + "{% endif %}"
    changed(folder / "tokenizer_config.json", chat_template=None)
    if file == "jinja":
        (folder / "chat_template.jinja").write_text(template)
    else:
        changed(folder / file, chat_template=template)
    assert Tokenizer(folder).opens_thinking() == opens


ODD = [None, True, 0, -1, 1.5, "", "x", "false", [], {}, [1], ["x"], {"a": 1}, math.inf, math.nan]
ODD += [10**30, 10**400, [[]], {"type": {}}, [None]]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN |= {"attention_factor": 1.0, "beta_fast": 32, "mscale": 1.0, "mscale_all_dim": 1.0}


def test_no_odd_value_is_a_traceback(tiny, tmp_path):
    """Whatever stands in a field: it is taken, or UserError names it."""
    config = json.loads((tiny / "config.json").read_text())
    config |= {"layer_types": ["full_attention"] * 2, "quantization_config": None}
    for field, value in itertools.product([*config, "rope_scaling"], ODD):
        with contextlib.suppress(UserError):
            Qwen2Config.from_dict(config | {field: value})
    for field, value in itertools.product([*YARN, "rope_theta", "truncate"], ODD):
        with contextlib.suppress(UserError):
            Qwen2Config.from_dict(config | {"rope_scaling": YARN | {field: value}})
    folder = shutil.copytree(tiny, tmp_path / "m")
    places = [("tokenizer_config.json", "chat_template"), ("tokenizer_config.json", "eos_token")]
    places += [("generation_config.json", "eos_token_id"), ("config.json", "eos_token_id")]
    for (file, field), value in itertools.product(places, ODD):
        for content in (json.loads((tiny / file).read_text()) | {field: value}, value):
            (folder / file).write_text(json.dumps(content))
            with contextlib.suppress(UserError):
                faults(folder)
        shutil.copy(tiny / file, folder / file)


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
