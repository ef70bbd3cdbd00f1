"""Models of every family as transformers makes them, small and random: merged, loaded, compared.

The oracle is the formula written down once more in float64. `pytest -m slow` runs all; by default
one is. docs/formats.md has the table.
"""

import re

import pytest
import torch
from conftest import ROOT

from tinyr1.common.config import parse
from tinyr1.common.log import Log
from tinyr1.merge.options import MergeConfig
from tinyr1.merge.run import run_merge
from tinyr1.model.weights import Checkpoint

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
          "out_hidden_size": 32, "fullatt_block_indexes": [1]}  # fmt: skip
# Class, and what its config has instead of, or besides, SMALL.
MODELS = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True},
    "Qwen2MoeForCausalLM": EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16},
    "Qwen3ForCausalLM": {"head_dim": 8},
    "Qwen3MoeForCausalLM": EXPERTS | {"num_experts": 4, "head_dim": 8},
    "GemmaForCausalLM": {"head_dim": 8},
    "Gemma2ForCausalLM": {"head_dim": 8},
    "Gemma3ForCausalLM": {"head_dim": 8},
    "PhiForCausalLM": {},
    "Phi3ForCausalLM": {},
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "GPTNeoXForCausalLM": {},
    "GPTJForCausalLM": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "BloomForCausalLM": {"n_layer": 2, "n_head": 4},
    "FalconForCausalLM": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "MptForCausalLM": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "StableLmForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "CohereForCausalLM": {},
    "GraniteForCausalLM": {},
    "Starcoder2ForCausalLM": {},
    "DeepseekV3ForCausalLM": EXPERTS | {
        "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4},
    "MambaForCausalLM": {"state_size": 4},
    "T5ForConditionalGeneration": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
                                   "num_heads": 4, "decoder_start_token_id": 0},
    "BertForMaskedLM": {},
    "WhisperForConditionalGeneration": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "decoder_start_token_id": 1},
    "Qwen2_5_VLForConditionalGeneration": {"text_config": SMALL, "vision_config": VISION},
    "LlavaForConditionalGeneration": {
        "text_config": SMALL | {"model_type": "llama"},
        "vision_config": SMALL | {"model_type": "clip_vision_model", "image_size": 16,
                                  "patch_size": 4, "projection_dim": 32}},
}  # fmt: skip
BY_DEFAULT = "Qwen3MoeForCausalLM"


def make_pair(folder, name):
    """Two models of one class that differ by a percent, everywhere, in bfloat16."""
    cls = getattr(transformers, name)
    options = MODELS[name]
    config = cls.config_class(**(options if "text_config" in options else SMALL | options))
    torch.manual_seed(0)
    base = cls(config)
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = cls(config)
        model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        paths.append(folder / str(seed))
        model.to(torch.bfloat16).save_pretrained(paths[-1])
    return cls, paths


def fused_in_float64(left, right):
    """Section 2.2 of the paper, term by term, and which elements are too near the threshold."""
    a, b = left.double(), right.double()
    p, q = b.softmax(-1) + 1e-8, a.softmax(-1) + 1e-8
    scores = (b - a).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = scores.flatten().sort().values
    q1, median, q3 = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (q3 - q1)
    near = (scores - threshold).abs() <= 1e-4 * threshold + 1e-12
    return torch.where(scores >= threshold, right, left), near


@pytest.mark.parametrize(
    "name",
    [n if n == BY_DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
def test_merged_loaded_and_equal_to_float64(name, tmp_path):
    cls, paths = make_pair(tmp_path, name)
    left, right = (Checkpoint(path) for path in paths)
    for method in ("arcee_fusion", "linear"):
        out = tmp_path / method
        words = [*map(str, paths), str(out), "--method", method]
        run_merge(parse(MergeConfig, words), Log(quiet=True))
        merged = Checkpoint(out)
        assert set(merged.specs) == set(left.specs)
        moved = 0
        for tensor in merged.specs:
            a, b, found = (model.tensor(tensor) for model in (left, right, merged))
            if method == "linear":
                wanted = ((a.double() + b.double()) / 2).to(a.dtype)
                assert torch.equal(found, wanted), tensor
            else:
                wanted, near = fused_in_float64(a, b)
                assert bool(((found == wanted) | near).all()), tensor
                moved += int((found != a).sum())
        assert method == "linear" or moved > 0
        model, info = cls.from_pretrained(out, output_loading_info=True, dtype="auto")
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
            info
        )
        whole = [cls.from_pretrained(path, dtype="auto").state_dict() for path in paths]
        for key, value in model.state_dict().items():
            a, b = whole[0][key], whole[1][key]
            if method == "linear":
                assert torch.equal(value, ((a.double() + b.double()) / 2).to(a.dtype)), key
            else:
                assert bool(((value == a) | (value == b)).all()), key


def test_the_table_names_them_all():
    page = (ROOT / "docs" / "formats.md").read_text()
    section = page.split("## Families of models")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(MODELS)


def write_processor(folder):
    """A processor of images and text, whose tokenizer knows two words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    transformers.LlavaProcessor(
        image_processor=images, tokenizer=fast, patch_size=4,
        vision_feature_select_strategy="default",
    ).save_pretrained(folder)  # fmt: skip


def test_a_processor_loads_from_the_output_as_from_left(tmp_path):
    """Of a model that sees: image and text become the same numbers."""
    pytest.importorskip("PIL")
    _, paths = make_pair(tmp_path, "LlavaForConditionalGeneration")
    write_processor(paths[0])
    run_merge(MergeConfig((*paths, tmp_path / "out")), Log(quiet=True))
    image = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8).numpy()
    read = []
    for folder in (paths[0], tmp_path / "out"):
        processor = transformers.AutoProcessor.from_pretrained(folder)
        read.append(processor(images=[image], text=["<image> a b"], return_tensors="pt"))
    assert set(read[0]) == set(read[1]) >= {"input_ids", "pixel_values"}
    for key in read[0]:
        assert torch.equal(read[0][key], read[1][key]), key
