"""The paper in one file against the package: two programs that share no code."""

import ast
import random
import sys
from pathlib import Path

import pytest
import torch

from tinyr1 import nano, thinking
from tinyr1.common.ranks import Ranks
from tinyr1.evaluate import stats
from tinyr1.merge import arcee_fusion
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2
from tinyr1.record import Pack
from tinyr1.sampling.draw import draw
from tinyr1.train import plan_packs
from tinyr1.train.optim import make_optimizer
from tinyr1.train.packing import make_batch
from tinyr1.train.sft import train_step

CONFIG = Qwen2Config(**nano.Config()._asdict())


def pair(seed=0):
    """The same random weights in both; no tensor is constant, or errors in it would not show."""
    small, ours = nano.Qwen2(nano.Config()), Qwen2(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_(0.3, 0.2, generator=generator)
    ours.load_state_dict(small.state_dict())
    return small, ours


def documents(count, seed=0):
    world, rng = nano.World(seed), random.Random(seed)
    return [world.document(rng.choice(list(nano.DOMAINS)), rng) for _ in range(count)]


def packed(docs, plans):
    """Packs of documents as the package has them: one flat row."""
    packs = [Pack(tuple(plan), sum(len(docs[i].tokens) for i in plan)) for plan in plans]

    def read(i):
        is_target = [False] * len(docs[i].prompt) + [True] * len(docs[i].response)
        return torch.tensor(docs[i].tokens).numpy(), torch.tensor(is_target).numpy()

    return make_batch(packs, read, "neat")


def test_it_imports_torch_and_the_standard_library_only():
    for node in ast.walk(ast.parse(Path(nano.__file__).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in {"torch", *sys.stdlib_module_names}, name


@pytest.mark.parametrize("tied", [True, False])
def test_same_weights_same_logits(tied):
    config = nano.Config(tie_word_embeddings=tied)
    small, ours = nano.Qwen2(config), Qwen2(Qwen2Config(**config._asdict()))
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.2)
    ours.load_state_dict(small.state_dict())
    tokens = torch.randint(0, config.vocab_size, (3, 40))
    difference = small(tokens) - ours(tokens)
    assert difference.abs().max() < 1e-4 * ours(tokens).abs().max()  # float32, another order


def test_same_lengths_same_packs():
    rng = random.Random(0)
    for capacity in (12, 30, 128):
        lengths = [rng.randint(1, capacity) for _ in range(200)]
        assert nano.plan_packs(lengths, capacity) == plan_packs(lengths, capacity)


def test_same_packs_same_loss_and_gradients():
    small, ours = (model.double() for model in pair())
    docs = documents(20)
    plans = plan_packs([len(d.tokens) for d in docs], 64)
    step = torch.optim.SGD(small.parameters(), lr=0.0), torch.optim.SGD(ours.parameters(), lr=0.0)
    grads = []
    for optimizer in step:  # keep the gradients that the step would forget
        optimizer.zero_grad = lambda *_, **__: None
        grads.append(optimizer.param_groups[0]["params"])
    loss = nano.train_step(small, [nano.make_batch([[docs[i] for i in p] for p in plans])], step[0])
    batch = packed(docs, plans)
    stats = train_step(ours, [batch], float(len(batch.targets)), step[1], Ranks(), clip_norm=1.0)
    assert stats.loss == pytest.approx(loss, rel=1e-6)  # the package sums in float32
    for a, b in zip(*grads, strict=True):
        assert (a.grad - b.grad).abs().max() < 1e-6 * max(1.0, float(a.grad.abs().max()))


def test_same_data_same_training():
    """Ten steps with AdamW from one initial model end at the same weights, but for rounding."""
    small, ours = pair()
    docs = documents(300)
    optimizer = make_optimizer(ours, 1e-3, (0.9, 0.95), 1e-8, 0.01, torch.float32)
    batches = []

    def both(model, micro_batches, theirs):
        loss = original(model, micro_batches, theirs)
        packs = batches.pop(0)
        batch = packed(docs, packs)
        ours_loss = train_step(ours, [batch], len(batch.targets), optimizer, Ranks(), 1.0).loss
        assert ours_loss == pytest.approx(loss, rel=1e-3)
        return loss

    original, make = nano.train_step, nano.make_batch

    def remembering(packs):
        batches.append([[docs.index(d) for d in pack] for pack in packs])
        return make(packs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano, "train_step", both)
        patch.setattr(nano, "make_batch", remembering)
        nano.fine_tune(small, docs, epochs=1, lr=1e-3, seed=0)
    mine = dict(small.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter - mine[name]).abs().max() < 5e-4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.5])
@pytest.mark.parametrize("shape", [(40, 60), (300,), (1, 7), (5, 6, 7)])
def test_same_tensors_same_fusion(shape, scale, dtype):
    generator = torch.Generator().manual_seed(1)
    left = 0.05 * torch.randn(shape, generator=generator)
    right = (left + scale * left.abs() * torch.randn(shape, generator=generator)).to(dtype)
    left = left.to(dtype)
    for arithmetic, fusion in (("exact", nano.fusion_exact), ("paper", nano.fusion_as_printed)):
        mask = fusion(left, right)
        expected = arcee_fusion(left, right, arithmetic=arithmetic)
        assert torch.equal(torch.where(mask, right, left), expected), arithmetic
        if scale > 1e-3 and mask.numel() > 100:  # else it may be that nothing stands out
            assert 0 < int((mask & (left != right)).sum()) < mask.numel()


def test_a_score_at_the_threshold():
    """One element alone has the softmax 1 in both, a KL of 0, and its score is the threshold."""
    left, right = torch.tensor([[1.0]]), torch.tensor([[1.5]])
    assert nano.fusion_exact(left, right).all()  # >=
    assert torch.equal(arcee_fusion(left, right), right)
    assert not nano.fusion_as_printed(left, right).any()  # >
    assert torch.equal(arcee_fusion(left, right, arithmetic="paper"), left)


def test_a_toy_run_merges_as_the_package_does():
    """At a hundredth of its size; the same seed again gives the same bits."""
    models, scores = nano.experiment(seed=3, scale=0.01)
    m, c, s = (models[f"{domain} expert"] for domain in nano.DOMAINS)
    merged = {}
    for name in c:
        merged[name] = arcee_fusion(c[name], arcee_fusion(s[name], m[name]))
    assert all(torch.equal(merged[n], models["(math & science) & coding"][n]) for n in merged)
    assert any(not torch.equal(merged[n], c[n]) for n in merged)
    assert set(scores) == set(models)
    again, _ = nano.experiment(seed=3, scale=0.01)
    assert all(torch.equal(models[m][n], again[m][n]) for m in models for n in models[m])


def test_pass_at_1_is_the_packages():
    small, _ = pair()
    questions = documents(30, seed=2)
    questions = [q for q in questions if len(q.prompt) == len(questions[0].prompt)]
    answers = [questions[i // 2].response[:-1] if i % 3 else [] for i in range(2 * len(questions))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano, "sample", lambda *_: answers)
        mean, error = nano.pass_at_1(small, questions, trials=2, seed=0)
    pairs = zip(answers[::2], answers[1::2], strict=True)
    outcomes = {str(i): [bool(a), bool(b)] for i, (a, b) in enumerate(pairs)}
    theirs = stats.pass_at_1(outcomes)
    assert (mean, error) == (pytest.approx(theirs.mean), pytest.approx(theirs.question_se))


def test_top_p_draws_from_the_same_words():
    """The words that either may draw, from many draws of one row of logits."""
    small, _ = pair()
    logits = torch.linspace(0, 3, nano.Config().vocab_size)
    small.forward = lambda tokens: logits.expand(*tokens.shape, -1)
    generator = torch.Generator().manual_seed(0)
    mine = nano.sample(small, [[0]] * 4000, generator, max_tokens=1)
    u = torch.rand(4000, generator=generator)
    theirs = draw(logits.expand(4000, -1), u, 0.6, 0.95)
    eos = nano.ID["<eos>"]
    assert {r[0] if r else eos for r in mine} == set(theirs.tolist())


def test_what_counts_is_what_follows_the_last_thought():
    for text in ("<think> 4 </think> 2", "<think> 4", "4 </think> 2 </think> 3", "</think>"):
        words = text.split()
        found = nano.answer([nano.ID[word] for word in words])
        after = thinking.after(text)
        expected = None if after is None else [nano.ID[word] for word in after.split()]
        assert found == expected, text
