"""Checkpoints: read what safetensors wrote, write what safetensors reads, name every fault."""

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tinyr1.common.errors import UserError
from tinyr1.model.rows import TensorSpec, all_finite
from tinyr1.model.weights import Checkpoint
from tinyr1.model.writer import CheckpointWriter, copy_side_files

TENSORS = {
    "a.weight": torch.randn(5, 3),
    "b.weight": torch.randn(4, 2, 2).bfloat16(),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float16),
}


def specs(tensors):
    return {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}


FILE = "model.safetensors"


def write(folder, tensors, **options):
    with CheckpointWriter(folder, specs(tensors), **options) as writer:
        for name in reversed(tensors):  # any order
            writer.write(name, tensors[name])


@pytest.mark.parametrize("max_bytes", [10**9, 70])
def test_round_trip_through_the_reference_library(tmp_path, max_bytes):
    write(tmp_path, TENSORS, max_shard_bytes=max_bytes)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(files) == (1 if max_bytes > 100 else 2)
    loaded = {k: v for f in files for k, v in load_file(tmp_path / f).items()}
    assert loaded.keys() == TENSORS.keys()
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert torch.equal(checkpoint.rows("a.weight", 1, 3), TENSORS["a.weight"][1:3])
    assert not list(tmp_path.glob("*.partial"))
    with safe_open(tmp_path / files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_transformers_reads_our_shards(tmp_path, tiny):
    transformers = pytest.importorskip("transformers")
    source = Checkpoint(tiny)
    tensors = {name: source.tensor(name) for name in source.specs}
    write(tmp_path, tensors, max_shard_bytes=20_000)
    copy_side_files(tiny, tmp_path, torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[name]), name


def test_nothing_appears_under_its_final_name_before_finish(tmp_path):
    writer = CheckpointWriter(tmp_path, specs(TENSORS), max_shard_bytes=70)
    writer.write("a.weight", TENSORS["a.weight"])
    assert not list(tmp_path.glob("*.safetensors"))
    writer.close()
    with pytest.raises(KeyError), CheckpointWriter(tmp_path, specs(TENSORS)) as writer:
        writer.write("unknown", torch.zeros(1))
    assert not list(tmp_path.glob("*.safetensors"))


def test_second_export_with_fewer_shards_leaves_no_stale_ones(tmp_path):
    write(tmp_path, TENSORS, max_shard_bytes=70)
    write(tmp_path, TENSORS)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "model_of_mine.safetensors").write_bytes(b"x")
    write(tmp_path, TENSORS)
    assert (tmp_path / "model_of_mine.safetensors").exists()
    assert torch.equal(Checkpoint(tmp_path).tensor("a.weight"), TENSORS["a.weight"])


def test_check_lists_every_fault(tmp_path):
    save_file({"x": torch.zeros(2), "y": torch.zeros(3)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    checkpoint.check({"x": (2,), "y": (3,)}, tied=False)
    with pytest.raises(UserError) as error:
        checkpoint.check({"x": (4,), "z": (1,)}, tied=False)
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  z: missing",
        "  x: shape [2], expected [4]",
        "  y: not a tensor of this model",
    ]


def test_a_tied_models_spare_head_must_be_the_embedding(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyr1.model.rows.CHUNK_ELEMENTS", 4)
    embedding = torch.arange(10.0).view(5, 2)

    def save(head):
        tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
        save_file(tensors, tmp_path / "model.safetensors")

    (tmp_path / "config.json").write_text("{}")
    shapes = {"model.embed_tokens.weight": (5, 2)}
    save(embedding.clone())
    checkpoint = Checkpoint(tmp_path)
    checkpoint.check(shapes, tied=True)
    before = checkpoint.fingerprint()
    checkpoint.drop_spare_head()
    assert list(checkpoint.specs) == list(checkpoint.shards) == ["model.embed_tokens.weight"]
    assert checkpoint.fingerprint() == before
    with pytest.raises(UserError, match=r"lm_head\.weight: not a tensor of this model"):
        Checkpoint(tmp_path).check(shapes, tied=False)
    other = embedding.clone()
    other[4, 1] += 1
    for head in (other, embedding[:4].clone(), embedding.half()):
        save(head)
        with pytest.raises(UserError, match=r"lm_head\.weight: is not model\.embed_tokens\.weight"):
            Checkpoint(tmp_path).check(shapes, tied=True)
        with pytest.raises(UserError, match=r"lm_head\.weight: is not model\.embed_tokens\.weight"):
            Checkpoint(tmp_path).drop_spare_head()
    embedding[1, 1] = float("nan")  # equal to nothing, and yet the same
    save(embedding.clone())
    Checkpoint(tmp_path).drop_spare_head()
    small = torch.zeros(5, 2).to(torch.float8_e4m3fn)
    save_file(
        {"model.embed_tokens.weight": small, "lm_head.weight": small.clone()}, tmp_path / FILE
    )
    with pytest.raises(UserError, match=r"lm_head.weight: dtype F8_E4M3, expected one of BF16"):
        Checkpoint(tmp_path).check(shapes, tied=True)
    for name in ("lm_head.weight", "transformer.wte.weight"):  # other models have other names
        save_file({"lm_head.weight": embedding, name: embedding.clone()}, tmp_path / FILE)
        checkpoint = Checkpoint(tmp_path)
        checkpoint.drop_spare_head()
        assert "lm_head.weight" in checkpoint.specs


def test_a_head_in_a_shard_of_its_own_leaves_no_empty_one(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    rows = {"model.embed_tokens.weight": torch.arange(10.0).view(5, 2)}
    write(
        tmp_path, rows | {"lm_head.weight": rows["model.embed_tokens.weight"]}, max_shard_bytes=40
    )
    checkpoint = Checkpoint(tmp_path)
    assert len(set(checkpoint.shards.values())) == 2
    whole = checkpoint.fingerprint()
    checkpoint.drop_spare_head()
    assert checkpoint.fingerprint() == whole
    out = tmp_path / "out"
    with CheckpointWriter(out, checkpoint.specs, layout=checkpoint.shards) as writer:
        writer.write("model.embed_tokens.weight", rows["model.embed_tokens.weight"])
    assert Checkpoint(out).files == ["model-00001-of-00002.safetensors"]
    assert len(list(out.glob("*.safetensors"))) == 1


def test_damaged_directories_are_named(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        Checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match=r"neither model.safetensors nor"):
        Checkpoint(tmp_path)
    write(tmp_path, TENSORS, max_shard_bytes=70)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-3])
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors: damaged"):
        Checkpoint(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match="no such file, but the index names it"):
        Checkpoint(tmp_path)
    shard.write_bytes(data)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost"] = shard.name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="ghost is not in"):
        Checkpoint(tmp_path)
    for odd in ("", "..", "a/b.safetensors", "\ud800.safetensors", "x.bin", 5, None):
        index["weight_map"]["ghost"] = odd
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=re.escape(f"ghost: {odd!r}: no file name")):
            Checkpoint(tmp_path)
    shard.unlink()
    shard.mkdir()
    index["weight_map"].pop("ghost")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IsADirectoryError):  # exit code 2 (errors.run_main)
        Checkpoint(tmp_path)


def test_a_directory_in_the_place_of_a_side_file_is_passed_over(tmp_path, tiny):
    (tmp_path / "chat_template.jinja").mkdir()
    shutil.copy(tiny / "config.json", tmp_path)
    copy_side_files(tmp_path, tmp_path / "out", torch.float32)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_integer_tensors_are_refused_by_name(tmp_path):
    save_file({"ids": torch.zeros(2, dtype=torch.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="ids: dtype I64, expected one of BF16"):
        Checkpoint(tmp_path).check({"ids": (2,)}, tied=False)


def test_fingerprint_tells_trainings_apart_but_not_copies(tmp_path, tiny):
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert Checkpoint(copy).fingerprint() == Checkpoint(tiny).fingerprint()
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-100:] = bytes(100)
    (copy / "model.safetensors").write_bytes(data)
    assert Checkpoint(copy).fingerprint() != Checkpoint(tiny).fingerprint()


def test_side_files_go_along_and_config_names_the_dtype(tmp_path, tiny):
    copy_side_files(tiny, tmp_path, torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes()


def test_config_with_both_names_of_the_dtype_gets_both(tmp_path, tiny):
    source = tmp_path / "source"
    source.mkdir()
    config = json.loads((tiny / "config.json").read_text())
    both = config | {"torch_dtype": "float32", "dtype": "float32"}
    (source / "config.json").write_text(json.dumps(both))
    copy_side_files(source, tmp_path / "out", torch.bfloat16)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == both | {"torch_dtype": "bfloat16", "dtype": "bfloat16"}


def test_one_shard_of_another_name_gets_an_index(tmp_path):
    layout = dict.fromkeys(TENSORS, "model-00001-of-00001.safetensors")
    write(tmp_path, TENSORS, layout=layout)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.shards == layout
    assert torch.equal(checkpoint.tensor("a.weight"), TENSORS["a.weight"])


def test_mapped_rows_at_any_alignment(tmp_path):
    """Headers of other writers need not be padded; windows may be smaller than a slice."""
    tensor = torch.randn(50, 7)
    for padding in range(4):
        header = {"x": {"dtype": "F32", "shape": [50, 7], "data_offsets": [0, 1400]}}
        text = json.dumps(header).encode() + b" " * padding
        data = len(text).to_bytes(8, "little") + text + tensor.numpy().tobytes()
        (tmp_path / "model.safetensors").write_bytes(data)
        with Checkpoint(tmp_path).mapped("x", window=100) as rows:
            for _ in range(2):
                parts = [rows[slice(i, min(i + 9, 50))] for i in range(0, 50, 9)]
                assert torch.equal(torch.cat(parts), tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_finite_by_bits(dtype):
    x = torch.randn(7, 33).to(dtype)
    x[0, 0], x[1, 1], x[2, 2] = torch.finfo(dtype).max, torch.finfo(dtype).min, -0.0
    assert all_finite(x)
    assert all_finite(x[:0])
    assert all_finite(x.T)
    for bad in (float("inf"), float("-inf"), float("nan"), -float("nan")):
        y = x.clone()
        y[6, 32] = bad
        assert not all_finite(y)
        assert not all_finite(y[:, ::2])
