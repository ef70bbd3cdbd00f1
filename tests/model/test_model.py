"""The model against transformers, packed rows against their documents, decoding against both."""

import json
import math

import pytest
import torch

from tinyr1.common.errors import UserError
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import KVCache, Qwen2, document_attention, parameter_count

transformers = pytest.importorskip("transformers")

SIZES = {
    "plain": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "odd vocabulary, one kv head": {"num_key_value_heads": 1, "vocab_size": 77},
    "head_dim != hidden / heads": {"num_key_value_heads": 2, "head_dim": 24},
    "rms epsilon": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "yarn": {
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "yarn with attention factor": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 0.7,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
    },
}


def reference(**changes):
    """A random transformers model, its weights large enough that errors would show."""
    values = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        **changes,
    }
    torch.manual_seed(7)
    config = transformers.Qwen2Config(**values)
    model = transformers.Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * 0.15
            parameter.copy_(1 + noise if "norm" in name else noise)
    return model.eval()


@pytest.fixture
def pair(tmp_path):
    """Build (transformers model, ours loaded from its checkpoint)."""

    def build(**changes):
        theirs = reference(**changes)
        theirs.save_pretrained(tmp_path)
        return theirs, Qwen2.from_pretrained(tmp_path)

    return build


@pytest.mark.parametrize("case", SIZES)
def test_logits_and_gradients_equal_transformers(pair, case):
    theirs, ours = pair(**SIZES[case])
    tokens = torch.randint(0, ours.config.vocab_size, (3, 50))
    expected, logits = theirs(tokens).logits, ours(tokens)
    assert expected.std() > 0.3  # else the tolerance would prove nothing
    assert (logits - expected).abs().max() < 1e-5
    probe = torch.randn_like(logits)
    (expected * probe).mean().backward()
    (logits * probe).mean().backward()
    ours_by_name = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        assert (ours_by_name[name].grad - parameter.grad).abs().max() < 1e-6, name


def test_published_config_style_equals_new_style(pair):
    _, ours = pair(**SIZES["yarn"])
    old = {
        "model_type": "qwen2",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "sliding_window": 4096,
        "use_sliding_window": False,
    }
    assert Qwen2Config.from_dict(old) == ours.config


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"model_type": "llama"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"num_attention_heads": 5}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads"),
        ({"vocab_size": True}, "vocab_size=True"),
        ({"vocab_size": 10**30}, "vocab_size=1000"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"num_hidden_layers": 20_000}, "num_hidden_layers=20000: expected .* from 1 to 10000"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false': expected true or false"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps=nan"),
        ({"rope_theta": 1}, "rope_theta=1"),
        ({"rope_theta": ""}, "rope_theta=''"),
        (
            {"rope_scaling": "yarn"},
            "rope_scaling='yarn': expected an object of plain values or null",
        ),
        ({"rope_scaling": []}, r"rope_scaling=\[\]: expected an object"),
        ({"layer_types": 1}, "layer_types=1"),
        ({"rope_scaling": {"type": "yarn", "factor": math.nan}}, "factor=nan"),
        (
            {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}},
            "rope_theta=1000000.0: rope_parameters says 10000.0, too; keep one",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "type": "yarn", "factor": 2}},
            "rope_type='yarn': rope_scaling says 'default', too",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2}}},
            "rope_parameters=.*: expected an object of plain values",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"type": "yarn", "factor": 2}},
            "rope_scaling=.*: differs from rope_parameters=",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_slow": "x"}}, "beta_slow='x'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_config_that_cannot_be_honoured_is_refused_by_field_name(change, field):
    config = {
        "model_type": "qwen2",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    Qwen2Config.from_dict(config)
    with pytest.raises(UserError, match=field):
        Qwen2Config.from_dict(config | change)


def test_nulls_and_both_notations_of_the_same_rope():
    config = {
        "model_type": "qwen2", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4,
    }  # fmt: skip
    plain = Qwen2Config.from_dict(config)
    nulls = ("rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_scaling", "head_dim")
    assert Qwen2Config.from_dict(config | dict.fromkeys(nulls)) == plain
    old = {"type": "yarn", "factor": 2}
    new = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e6}
    both = config | {"rope_theta": 1e6, "rope_scaling": old, "rope_parameters": new}
    assert Qwen2Config.from_dict(both) == Qwen2Config.from_dict(config | {"rope_parameters": new})
    yarn = [Qwen2Config.from_dict(config | {"rope_scaling": old | t}).yarn
            for t in ({}, {"truncate": True}, {"truncate": None})]  # fmt: skip
    assert [y.truncate for y in yarn] == [True, True, False]  # null as transformers takes it
    null = {"rope_type": None, "type": "yarn", "factor": 2, "partial_rotary_factor": None}
    assert Qwen2Config.from_dict(config | {"rope_scaling": null}).yarn
    long = {"max_position_embeddings": 131072, "original_max_position_embeddings": 16384}
    yarn = Qwen2Config.from_dict(config | long | {"rope_scaling": old}).yarn
    assert yarn.original_max_position_embeddings == 16384  # as transformers


def test_tensor_shapes_of_the_32b_model_sum_to_its_parameter_count():
    config = Qwen2Config(
        vocab_size=152064,
        hidden_size=5120,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
    )
    assert parameter_count(config) == 32_763_876_352


def small_model(dtype=torch.float32):
    torch.manual_seed(3)
    config = Qwen2Config(64, 32, 48, 2, 4, 2, 8)
    return Qwen2(config).to(dtype).eval()


def packed_inputs(lengths):
    tokens = torch.randint(0, 64, (1, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return tokens, positions, cu_seqlens


def test_packed_row_equals_its_documents_one_by_one():
    model = small_model(torch.float64)
    lengths = [5, 1, 17, 8]
    tokens, positions, cu_seqlens = packed_inputs(lengths)
    packed = model(tokens, positions=positions, cu_seqlens=cu_seqlens)
    alone = torch.cat([model(part) for part in tokens.split(lengths, 1)], 1)
    assert (packed - alone).abs().max() < 1e-12  # float64: summation order only
    naive = model(tokens)
    assert (naive - alone).abs().max() > 1e-3  # the documents do see each other without cu_seqlens


@pytest.mark.parametrize("lengths", [[4, 9, 3], [130, 300, 128, 1100]])  # in blocks, and too long
def test_document_attention_equals_a_dense_mask(lengths):
    total = sum(lengths)
    q = torch.randn(1, total, 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, total, 2, 8, dtype=torch.float64, requires_grad=True) for _ in "kv")
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (document[:, None] == document) & torch.ones(total, total).tril().bool()
    keys, values = k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)
    scores = torch.einsum("bthd,bshd->bhts", q, keys) / 8**0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, values)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    out = document_attention(q, k, v, cu_seqlens, max(lengths))
    assert (out - expected).abs().max() < 1e-12
    upstream = torch.randn_like(out)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream)
    for got, want in zip(torch.autograd.grad(out, (q, k, v), upstream), wanted, strict=True):
        assert (got - want).abs().max() < 1e-12


def test_decoding_with_a_cache_equals_a_forward_over_everything():
    model = small_model(torch.float64)
    tokens = torch.randint(0, 64, (3, 12))
    whole = model(tokens)
    cache = KVCache(model.config, slots=4, dtype=torch.float64, device="cpu")
    cache.first = 1  # rows live in slots 1..3
    first = model(tokens[:, :5], cache=cache)
    assert (first - whole[:, :5]).abs().max() < 1e-12
    for t in range(5, 12):
        cache.reserve(t + 1)
        step = model(tokens[:, t : t + 1], positions=torch.full((3, 1), t), cache=cache)
        assert (step[:, 0] - whole[:, t]).abs().max() < 1e-12


def test_cache_slot_copied_and_reused_reads_nothing_stale():
    model = small_model(torch.float64)
    cache = KVCache(model.config, slots=2, dtype=torch.float64, device="cpu")
    model(torch.randint(0, 64, (2, 16)), cache=cache)  # fill both with something else
    prompt, following = torch.randint(0, 64, (1, 6)), torch.randint(0, 64, (2, 1))
    model(prompt, cache=cache)  # slot 0
    cache.copy_slot(0, 1, 6)
    step = model(following, positions=torch.full((2, 1), 6), cache=cache)
    expected = model(torch.cat((prompt.expand(2, 6), following), 1))[:, -1]
    assert (step[:, 0] - expected).abs().max() < 1e-12


def test_from_pretrained_lists_every_fault(tmp_path):
    theirs = reference(num_key_value_heads=2)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["intermediate_size"] = 100
    config["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        Qwen2.from_pretrained(tmp_path)
    text = str(error.value)
    assert "layers.1.mlp.up_proj.weight: shape [96, 64], expected [100, 64]" in text
    assert "layers.2.self_attn.q_proj.bias: not a tensor of this model" in text
    with pytest.raises(UserError, match="no such directory"):
        Qwen2.from_pretrained(tmp_path / "missing" / "model")
