"""The embedded sampler: the right distribution, the same samples on every way, nothing lost."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import checked, task_rows

from tinyr1 import sampling
from tinyr1.common.errors import UserError
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.evaluate.tasks import make_prompts
from tinyr1.model.chat import stop_ids
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Prompt
from tinyr1.sampling import draw as draw_module
from tinyr1.sampling import engine as engine_module
from tinyr1.sampling.draw import draw, uniforms
from tinyr1.sampling.engine import TorchEngine
from tinyr1.sampling.queue import WorkQueue
from tinyr1.sampling.run import sample_missing
from tinyr1.sampling.sampler import SamplingSettings, stream_key

assert sampling.__doc__


def reference_probabilities(logits, temperature, top_p, top_k=0):
    """The definition, one row, in float64: sorted, cut, renormalised."""
    p = torch.softmax(logits.double() / temperature, -1)
    order = p.argsort(descending=True, stable=True)
    if top_k:
        keep = order[:top_k]
        p = torch.zeros_like(p).scatter(0, keep, p[keep] / p[keep].sum())
    before = p[order].cumsum(0) - p[order]
    kept = order[before < top_p]
    return torch.zeros_like(p).scatter(0, kept, p[kept] / p[kept].sum())


@pytest.mark.parametrize(
    ("size", "spread", "top_p", "top_k"),
    [
        (12, 2.0, 0.95, 0),
        (12, 2.0, 1.0, 0),
        (12, 2.0, 0.9, 5),
        (400, 0.3, 0.95, 0),
        (400, 3.0, 0.5, 0),
    ],
)
def test_draws_follow_the_definition_chi_square(size, spread, top_p, top_k):
    torch.manual_seed(size)
    logits = torch.randn(size) * spread
    expected = reference_probabilities(logits, 0.6, top_p, top_k)
    n = 40_000
    u = torch.from_numpy(uniforms(np.arange(n, dtype=np.uint64), np.full(n, 3)))
    counts = torch.zeros(size, dtype=torch.float64)
    for part in u.split(2000):
        tokens = draw(logits.expand(len(part), size), part, 0.6, top_p, top_k)
        counts += torch.bincount(tokens, minlength=size)
    assert counts[expected == 0].sum() == 0  # nothing outside of the nucleus
    common = expected * n > 5
    statistic = ((counts - expected * n)[common].square() / (expected * n)[common]).sum()
    freedom = int(common.sum()) - 1
    # Five standard deviations of a chi-square distribution.
    assert statistic < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


def test_wide_nucleus_is_sorted_whole_and_exact():
    """More candidates than are sorted first: the fallback must give the same as the definition."""
    logits = torch.linspace(0, 0.5, 1000)
    expected = reference_probabilities(logits, 1.0, 0.95)
    assert int((expected > 0).sum()) > draw_module.TOP_CANDIDATES
    cdf = expected.cumsum(0)  # by id
    u = torch.rand(200, dtype=torch.float64)
    drawn = draw(logits.expand(200, 1000), u, 1.0, 0.95)
    wanted = torch.searchsorted(cdf, u, right=True)
    assert (drawn == wanted).float().mean() > 0.99  # borders move by float32 rounding


def test_rounding_between_shapes_changes_almost_no_draw():
    """10,000 draws from logits, and from the same with errors as of another matrix product.

    Tokens come in pairs of nearly equal logits, which such errors put into another order: drawn by
    probability, every tenth or so would differ.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50, 500, generator=generator).repeat_interleave(2, -1)
    logits += 1e-6 * torch.randn(logits.shape, generator=generator)
    u = torch.from_numpy(uniforms(np.arange(10_000, dtype=np.uint64), np.zeros(10_000)))
    for top_p, top_k in ((0.95, 0), (1.0, 0), (0.95, 20)):
        moved = logits + 1e-6 * torch.randn(logits.shape, generator=generator)
        assert not torch.equal(logits.argsort(-1), moved.argsort(-1))
        drawn, other = (draw(rows.repeat(200, 1), u, 0.6, top_p, top_k) for rows in (logits, moved))
        # What remains: a pair at the nucleus's end, and numbers that lie at a border.
        assert (drawn != other).sum() < 40


def test_equal_logits_go_by_id():
    """Which of equal tokens is the last of a nucleus must not depend on a kernel's order."""
    logits = torch.zeros(1, 40)
    u = torch.arange(0, 1, 0.01, dtype=torch.float64)
    drawn = draw(logits.expand(100, 40), u, 1.0, 0.24)
    assert set(drawn.tolist()) == set(range(10))
    assert drawn.tolist() == sorted(drawn.tolist())


def test_greedy_and_extremes():
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, 3.0, 1.0]])
    assert draw(logits, torch.rand(2), 0.0, 0.95).tolist() == [1, 0]
    assert draw(logits, torch.tensor([0.999999, 0.0]), 0.6, 1e-9).tolist() == [1, 0]
    assert draw(logits, torch.tensor([1 - 2**-53] * 2, dtype=torch.float64), 1.0, 1.0).max() < 3


def test_uniforms_are_uniform_independent_and_stateless():
    keys = np.array([stream_key(0, Prompt("t", str(i), 0, (1,))) for i in range(2000)], np.uint64)
    a, b = uniforms(keys, np.zeros(2000)), uniforms(keys, np.ones(2000))
    for x in (a, b):
        assert abs(x.mean() - 0.5) < 0.03
        assert np.histogram(x, 10, (0, 1))[0].min() > 140
        assert ((x >= 0) & (x < 1)).all()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.08
    assert np.array_equal(uniforms(keys[5:9], np.zeros(4)), a[5:9])


def test_stream_keys_differ_in_every_part():
    prompts = [Prompt("t", "1", 0, (1,)), Prompt("t", "1", 1, (1,)), Prompt("t", "10", 0, (1,))]
    prompts.append(Prompt("t1", "0", 0, (1,)))
    assert len({stream_key(s, p) for s in (0, 1) for p in prompts}) == 8


@pytest.fixture(scope="module")
def prompts(tiny):
    rows = task_rows(9)
    return make_prompts(checked(rows), Tokenizer(tiny), "deepseek_r1", "plain", 3, False)


def engine_of(tiny, slots, **settings):
    model, tokenizer = Qwen2.from_pretrained(tiny), Tokenizer(tiny)
    stops = stop_ids(tokenizer, "deepseek_r1")
    options = {"max_tokens": 40, "seed": 5, "stop_ids": stops} | settings
    return TorchEngine(model, tokenizer, SamplingSettings(**options), slots, 200)


def collect(engine, prompts):
    return {s.key: s for part in engine.generate(prompts) for s in part}


def test_same_samples_for_any_slot_count_order_and_company(tiny, prompts):
    reference = collect(engine_of(tiny, 1), prompts)
    assert len(reference) == 27
    assert len({s.text for s in reference.values()}) == 27  # trials differ
    assert {s.finish_reason for s in reference.values()} == {"stop", "length"}
    for slots in (4, 13, 64):
        assert collect(engine_of(tiny, slots), prompts) == reference
    backwards = collect(engine_of(tiny, 6), prompts[::-1])
    assert backwards == reference
    alone = collect(engine_of(tiny, 3), prompts[7:8])
    assert alone == {prompts[7].key: reference[prompts[7].key]}


def test_company_changes_almost_none_of_many_samples(tiny):
    """Some 25,000 tokens in few slots and in many; a draw at a border may differ, hardly more."""
    questions = make_prompts(
        checked(task_rows(40)), Tokenizer(tiny), "deepseek_r1", "plain", 6, False
    )
    samples = [collect(engine_of(tiny, slots, max_tokens=170), questions) for slots in (8, 60)]
    assert sum(sample.token_count for sample in samples[0].values()) > 20_000
    assert sum(samples[0][key] != samples[1][key] for key in samples[0]) <= 2


def test_small_prefill_batches_change_nothing(tiny, prompts, monkeypatch):
    reference = collect(engine_of(tiny, 16), prompts)
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 1)
    assert collect(engine_of(tiny, 16), prompts) == reference


def test_greedy_equals_transformers(tiny, prompts):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny).eval()
    stop = Tokenizer(tiny).eos_ids()[0]
    engine = engine_of(tiny, 5, temperature=0.0)
    samples = collect(engine, prompts)
    tokenizer = Tokenizer(tiny)
    for prompt in prompts[::3]:
        ids = torch.tensor([prompt.tokens])
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False,
            eos_token_id=stop, pad_token_id=stop,
        )  # fmt: skip
        new = out[0, len(prompt.tokens) :].tolist()
        sample = samples[prompt.key]
        assert sample.token_count == len(new)
        assert sample.text == tokenizer.decode([t for t in new if t != stop])


def test_limits_are_kept_and_recorded(tiny, prompts):
    model, tokenizer = Qwen2.from_pretrained(tiny), Tokenizer(tiny)
    longest = max(len(p.tokens) for p in prompts)
    stops = stop_ids(tokenizer, "deepseek_r1")
    settings = SamplingSettings(max_tokens=500, stop_ids=stops)
    engine = TorchEngine(model, tokenizer, settings, 8, longest + 2)
    samples = collect(engine, prompts)
    for prompt in prompts:
        limit = longest + 2 - len(prompt.tokens)
        sample = samples[prompt.key]
        assert sample.token_count <= limit
        if sample.finish_reason == "length":
            assert sample.token_count == limit


def test_one_token_prompt(tiny):
    prompt = Prompt("t", "1", 0, (5,))
    assert len(collect(engine_of(tiny, 2), [prompt, Prompt("t", "1", 1, (5,))])) == 2


def test_run_resumes_by_sample_and_tolerates_a_torn_line(tiny, prompts, tmp_path):
    settings, log, queue = {"seed": 5}, Log(quiet=True), WorkQueue(Ranks())
    engine = engine_of(tiny, 8)

    def open_engine(share):
        return engine

    whole = sample_missing(open_engine, prompts, tmp_path / "a", settings, log, queue)
    lines = (tmp_path / "a" / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sampling.json").write_text(json.dumps(settings))
    (tmp_path / "b" / "samples.jsonl").write_bytes(b"".join(lines[:10]) + lines[10][:-4])
    asked = []
    original = engine.generate
    engine.generate = lambda p: original(asked.append(x) or x for x in p)
    again = sample_missing(open_engine, prompts, tmp_path / "b", settings, log, queue)
    assert again == whole
    assert len(asked) == 17
    with pytest.raises(UserError, match="seed=6"):
        sample_missing(open_engine, prompts, tmp_path / "b", {"seed": 6}, log, queue)
    changed = [dataclasses.replace(prompts[0], tokens=(1, 2, 3)), *prompts[1:]]
    with pytest.raises(UserError, match="its prompt is not the one"):
        sample_missing(open_engine, changed, tmp_path / "a", settings, log, queue)
    fewer = sample_missing(open_engine, prompts[:5], tmp_path / "a", settings, log, queue)
    assert fewer == whole[:5]  # rows and trials may be added or left out
