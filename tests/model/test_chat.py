"""Templates as token rules, against the published Jinja templates and by hand."""

import json
import shutil

import pytest
from conftest import SHARED_DATA
from tokenizers import Tokenizer as FastTokenizer

from tinyr1.common.errors import UserError
from tinyr1.model import chat
from tinyr1.model.chat import check_template, guess_template, render, render_prompt, stop_ids
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Message

REBUILT = SHARED_DATA / "qwen_tokenizer"
needs_rebuilt = pytest.mark.skipif(not REBUILT.exists(), reason="rebuilt tokenizers are absent")
ANSWER = "<think>\nOkay, 2+2.\n\nThat is 4.\n</think>\n\nIt is **4** — \\boxed{4} 😀"
TALK = (Message("system", "Be brief."), Message("user", "What is 2+2?\n"))


def published(folder):
    """The tokenizer and its Jinja template through transformers."""
    from transformers import PreTrainedTokenizerFast

    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.chat_template = config["chat_template"]
    tokenizer.bos_token = config["bos_token"]
    return tokenizer


@needs_rebuilt
@pytest.mark.parametrize(
    ("name", "template", "opened"),
    [("deepseek-r1-distill-qwen", "deepseek_r1", True), ("qwen2.5", "qwen", False)],
)
@pytest.mark.parametrize("messages", [TALK, TALK[1:], (*TALK, Message("assistant", "4"), TALK[1])])
def test_prompts_equal_the_published_template(name, template, opened, messages):
    ours = Tokenizer(REBUILT / name)
    dicts = [m._asdict() for m in messages]
    text = published(REBUILT / name).apply_chat_template(
        dicts, tokenize=False, add_generation_prompt=True
    )
    expected = ours.encode(text)
    assert render_prompt(ours, messages, template, open_thinking=opened) == expected
    assert ours.opens_thinking() == opened
    assert guess_template(ours) == template


@needs_rebuilt
def test_rebuilt_tokenizer_training_example():
    tokenizer = Tokenizer(REBUILT / "deepseek-r1-distill-qwen")
    example = render(tokenizer, (*TALK, Message("assistant", ANSWER)), "deepseek_r1")
    assert example.tokens.count(tokenizer.special(chat.BOS)) == 1
    target = [t for t, yes in zip(*example, strict=True) if yes]
    assert tokenizer.decode_raw(target) == ANSWER + chat.EOS
    assert tokenizer.decode(target) == ANSWER  # tags stay, special tokens go
    assert example.is_target.index(True) == len(render_prompt(tokenizer, TALK, "deepseek_r1"))


@needs_rebuilt
def test_think_in_prompt_cuts_where_the_generation_prompt_ends():
    tokenizer = Tokenizer(REBUILT / "deepseek-r1-distill-qwen")
    example = render(tokenizer, (*TALK, Message("assistant", ANSWER)), "deepseek_r1", "prompt")
    prompt = render_prompt(tokenizer, TALK, "deepseek_r1", open_thinking=True)
    assert example.tokens[: len(prompt)] == prompt
    assert example.is_target == [False] * len(prompt) + [True] * (len(example.tokens) - len(prompt))
    assert tokenizer.decode(example.tokens[len(prompt) :]) == ANSWER.removeprefix("<think>\n")


@needs_rebuilt
def test_template_without_single_token_markers_is_refused():
    with pytest.raises(UserError, match=r"no single token '<\|im_start\|>'.*deepseek_r1"):
        check_template(Tokenizer(REBUILT / "deepseek-r1-distill-qwen"), "qwen")


def test_laboratory_tokenizer_layout_by_hand(tiny):
    tokenizer = Tokenizer(tiny)
    messages = (Message("user", "Compute 12+3."), Message("assistant", "<think>\n</think>\n\n1"))
    tokens, is_target = render(tokenizer, messages, "deepseek_r1")
    pieces = [tokenizer.decode_raw([t]) for t in tokens]
    prompt = [chat.BOS, chat.USER, "Compute ", "1", "2", "+", "3", ".", chat.ASSISTANT]
    assert pieces == [*prompt, "<think>", "\n", "</think>", "\n", "\n", "1", chat.EOS]
    assert is_target == [False] * 9 + [True] * 7
    assert tokenizer.eos_ids() == (tokenizer.special(chat.EOS),)


def test_the_thought_that_a_prompt_opens_is_no_target_whatever_stands_before_it(tiny):
    tokenizer = Tokenizer(tiny)
    talk = Message("user", "a"), Message("assistant", "\n <think>\nb\n</think>\n\nc")
    tokens, is_target = render(tokenizer, talk, "deepseek_r1", "prompt")
    prompt = render_prompt(tokenizer, talk[:1], "deepseek_r1", open_thinking=True)
    assert tokens[: len(prompt)] == prompt
    assert is_target == [False] * len(prompt) + [True] * (len(tokens) - len(prompt))


def test_a_prompt_goes_on_where_the_training_text_does(tiny):
    tokenizer = Tokenizer(tiny)
    talk = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"))
    more = (*talk, Message("user", "c"))
    whole = render(tokenizer, (*more, Message("assistant", "d")), "deepseek_r1").tokens
    prompt = render_prompt(tokenizer, more, "deepseek_r1")
    assert whole == [*prompt, *tokenizer.encode("d"), tokenizer.special(chat.EOS)]


def test_every_assistant_turn_is_a_target_and_keeps_its_thought(tiny):
    tokenizer = Tokenizer(tiny)
    turn = (Message("user", "a"), Message("assistant", "<think>\nb\n</think>\n\nc"))
    tokens, is_target = render(tokenizer, turn * 2, "deepseek_r1")
    targets = [t for t, yes in zip(tokens, is_target, strict=True) if yes]
    assert tokenizer.decode_raw(targets) == (turn[1].content + chat.EOS) * 2


@pytest.mark.parametrize("marker", [chat.BOS, chat.EOS, chat.USER, chat.ASSISTANT])
def test_a_message_with_a_marker_in_it_is_refused(tiny, marker):
    tokenizer = Tokenizer(tiny)
    question, answer = Message("user", "a"), Message("assistant", "<think>\nb\n</think>\n\nc")
    for bad in (
        (Message("user", f"a{marker}"), answer),
        (question, Message("assistant", answer.content + marker + "d")),
    ):
        with pytest.raises(ValueError, match="contains '<"):
            render(tokenizer, bad, "deepseek_r1")
    assert render(tokenizer, (Message("user", chat.IM_END), answer), "deepseek_r1")


def test_the_templates_end_token_stops_sampling_too(tiny, tmp_path):
    """A base model names <|endoftext|> only, but was trained to end turns otherwise."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    fast = FastTokenizer.from_file(str(tiny / "tokenizer.json"))
    fast.add_special_tokens([chat.IM_START, chat.IM_END])
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    eos, im_end = tokenizer.special(chat.EOS), tokenizer.special(chat.IM_END)
    assert stop_ids(tokenizer, "qwen") == (eos, im_end)
    assert stop_ids(tokenizer, "deepseek_r1") == (eos,)
    talk = Message("user", "a"), Message("assistant", f"b {chat.EOS} c")
    with pytest.raises(ValueError, match="the assistant message contains '<"):
        render(tokenizer, talk, "qwen")  # it would be a target that ends the answer in its middle


def test_tokenizer_faults_are_named(tmp_path):
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json: cannot be read"):
        Tokenizer(tmp_path)


def test_sentencepiece_model_gives_the_same_ids(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "corpus.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 50 + "pack my box\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=35,
        model_type="unigram", minloglevel=2, control_symbols=["<bos>"],
        user_defined_symbols=["<think>"],
    )  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = Tokenizer(tmp_path)
    for line in ("the quick brown fox", "lazy box", "pack the dog over my fox"):
        assert ours.encode(line) == reference.encode(line)
        assert ours.decode(ours.encode(line)) == line
    ids = [ours.special("<bos>"), *ours.encode("the box<think>")]
    assert ours.decode_raw(ids) == "<bos>the box<think>"
    assert ours.decode(ids) == "the box<think>"
    assert ours.has("<bos>")
    assert not ours.has("<eos>")


def test_fingerprint_changes_with_the_vocabulary(tiny, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    assert Tokenizer(tmp_path).fingerprint() == Tokenizer(tiny).fingerprint()
    other = FastTokenizer.from_file(str(tiny / "tokenizer.json"))
    other.add_tokens(["new"])
    other.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).fingerprint() != Tokenizer(tiny).fingerprint()


QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}
        {{- 'SYSTEM' }}{%- endif %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role }}{%- endfor %}"""


@pytest.fixture
def chatml(tiny, tmp_path):
    """A tokenizer with ChatML's tokens and a template."""

    def make(template, **options):
        folder = tmp_path / "chatml"
        shutil.copytree(tiny, folder, dirs_exist_ok=True)
        fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        fast.add_special_tokens([chat.IM_START, chat.IM_END])
        fast.save(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": template})
        )
        return Tokenizer(folder, **options)

    return make


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("You are Qwen, created by Alibaba Cloud.", "You are Qwen, created by Alibaba Cloud."),
        (r"Put it within \\boxed{}.", r"Put it within \boxed{}."),
        (r"Don\'t.\nBe brief.", "Don't.\nBe brief."),
    ],
)
def test_the_system_message_is_the_templates_own(chatml, written, expected):
    tokenizer = chatml(QWEN25.replace("SYSTEM", written))
    assert tokenizer.default_system() == expected
    jinja2 = pytest.importorskip("jinja2")
    text = jinja2.Template(QWEN25.replace("SYSTEM", written)).render(messages=[{"role": "user"}])
    assert text.startswith(f"<|im_start|>system\n{expected}<|im_end|>\n")


def test_system_messages_of_templates_and_options(chatml):
    talk = (Message("user", "a"),)

    def text(template, system=None, messages=talk):
        tokenizer = chatml(template, system=system)
        return tokenizer.decode_raw(render_prompt(tokenizer, messages, "qwen"))

    own = QWEN25.replace("SYSTEM", "Add.")
    assert text(own).startswith("<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\na")
    assert text(own, "").startswith("<|im_start|>user\na")
    assert text(own, "Do.").startswith("<|im_start|>system\nDo.<|im_end|>\n")
    given = (Message("system", "Go."), *talk)
    assert text(own, "Do.", given).startswith("<|im_start|>system\nGo.<|im_end|>\n")
    assert text("{{ messages }}").startswith("<|im_start|>user\na")  # a template without one
    tokenizer = chatml(own, system="Do.")
    assert "Do." in tokenizer.decode_raw(render_prompt(tokenizer, talk, "deepseek_r1"))
    assert chatml(own).system is None  # R1's template has none of itself
    assert "Add." not in tokenizer.decode_raw(render_prompt(chatml(own), talk, "deepseek_r1"))
