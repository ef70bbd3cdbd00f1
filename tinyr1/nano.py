"""TinyR1 in one file: Branch-Merge distillation (arXiv 2503.04872), from data to pass@1.

    python -m tinyr1.nano            less than a minute on one core; torch and the standard library

Written to be read from top to bottom with the paper beside it: (1) to (4) in the margin are its
equations, "2.1" and the like its sections. Everything is here at its smallest faithful size: Qwen2,
packing with isolated documents, the training step, Arcee Fusion as printed and as it is used,
sampling, pass@1. The rest of the package does the same for 32B and for people's files; its tests
compare it with this file, which imports nothing of it. Not the paper's is the task: three domains
that a model of 52,000 parameters can learn.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# -------------------------------------------------- 2.1  the data
# A question is a letter for its domain and some digits; the student learns to write the teacher's
# trajectory, a thought between tags and the answer after them:
#
#     math      M 4 7 9 2 =    <think> 4 1 0 2 </think> 2           running sums, modulo 10
#     coding    C 4 7 9 2 =    <think> 2 9 7 4 </think> 3 0 8 5     reversed, then one more each
#     science   S 4 7 =        <think> 7 </think> 3                 a fact about 4 and 7: no rule

WORDS = ["<bos>", "<eos>", "<think>", "</think>", "M", "C", "S", "=", *"0123456789"]
ID = {word: i for i, word in enumerate(WORDS)}
DOMAINS = {"math": "M", "coding": "C", "science": "S"}


class Document(NamedTuple):
    """A question and its answer, as token ids. Only what the student must say is a target."""

    prompt: list[int]
    response: list[int]

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.response


class World:
    """The facts, the questions, and a teacher that can be careless."""

    def __init__(self, seed: int) -> None:
        self.facts = random.Random(f"facts {seed}").choices(range(10), k=100)

    def document(self, domain: str, rng: random.Random, careless: bool = False) -> Document:
        """A trajectory. Careless, it asks easier questions, and one answer in five may be wrong and
        one thought in five is empty: who learns from these knows the domains, and often fails.
        """
        if domain == "science":
            known = rng.choice((5, 10)) if careless else 10
            digits = [rng.randrange(known), rng.randrange(10)]
            thought, answer = digits[1:], [self.facts[10 * digits[0] + digits[1]]]
        else:
            digits = [rng.randrange(10) for _ in range(rng.randint(1, 4) if careless else 4)]
            if domain == "math":
                thought = [sum(digits[: i + 1]) % 10 for i in range(len(digits))]
                answer = thought[-1:]
            else:
                thought = digits[::-1]
                answer = [(digit + 1) % 10 for digit in thought]
        if careless and rng.random() < 0.2:
            answer = [(digit + rng.randrange(10)) % 10 for digit in answer]
        if careless and rng.random() < 0.2:
            thought = []
        said = ["<think>", *map(str, thought), "</think>", *map(str, answer), "<eos>"]
        asked = ["<bos>", DOMAINS[domain], *map(str, digits), "="]
        return Document([ID[word] for word in asked], [ID[word] for word in said])


# -------------------------------------------------- 3.1.1  the backbone
# Qwen2: pre-norm blocks of grouped-query attention (biases on q, k and v) and SwiGLU, rotary
# positions. Parameter names are those of the published checkpoints.
# Shapes: B rows, T tokens a row, D model, H query heads, K kv heads, Dh head dimension, V words.


class Config(NamedTuple):
    """Sizes, under the names of config.json; by default those of the toy."""

    vocab_size: int = len(WORDS)
    hidden_size: int = 48
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 12
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn the pairs (x[i], x[i + Dh/2]) of x (B, T, H, Dh) by position * theta^(-2i/Dh)."""
    half = x.shape[-1] // 2
    frequency = theta ** -(torch.arange(half, dtype=torch.float32) / half)
    angle = positions[..., None, None] * frequency  # (B, T, 1, Dh/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, sees: Tensor) -> Tensor:
        split = (*x.shape[:2], -1, self.c.head_dim)
        q = rotate(self.q_proj(x).view(split), positions, self.c.rope_theta)  # (B, T, H, Dh)
        k = rotate(self.k_proj(x).view(split), positions, self.c.rope_theta)  # (B, T, K, Dh)
        v = self.v_proj(x).view(split)  # (B, T, K, Dh)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H|K, T, Dh)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=sees[:, None], enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (B, T, D)


class MLP(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)

    def forward(self, x: Tensor, positions: Tensor, sees: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions, sees)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Qwen2(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.model = Decoder(c)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        if c.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, sees: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of tokens (B, T); `sees[b, i, j]`: token i may look at j."""
        length = tokens.shape[1]
        if positions is None:
            positions = torch.arange(length).expand(tokens.shape)
        if sees is None:
            sees = torch.ones(length, length, dtype=torch.bool).tril()[None]
        x = self.model.embed_tokens(tokens)  # (B, T, D)
        for block in self.model.layers:
            x = block(x, positions, sees)
        return self.lm_head(self.model.norm(x))


def initialise(model: Qwen2, seed: int) -> None:
    """Fan-in normal weights; what is added to the residual stream begins at 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith((".bias", "o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(p)
        elif "norm" not in name:  # which are 1
            nn.init.normal_(p, 0.0, 0.1 if "embed" in name else p.shape[1] ** -0.5, generator)


# -------------------------------------------------- 3.1.1  neat packing
# Several documents share a row, so that hardly a token is padding. None may look at another, each
# counts its positions from 0, and the last token of one does not predict the first of the next:
#
#     tokens      a a a a b b b c c
#     positions   0 1 2 3 0 1 2 0 1
#     owner       0 0 0 0 1 1 1 2 2        token i sees j where owner[i] == owner[j] and j <= i


def plan_packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest document first, each into the fullest pack with room."""
    packs: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [p for p, left in enumerate(room) if left >= lengths[i]]
        if not fitting:
            packs.append([])
            room.append(capacity)
        # Of equally full ones the newest.
        p = min(fitting, key=lambda p: (room[p], -p)) if fitting else len(packs) - 1
        packs[p].append(i)
        room[p] -= lengths[i]
    return packs


class Batch(NamedTuple):
    """Rows of packed documents. `targets`: the next token where it must be said, else -100."""

    tokens: Tensor  # (B, T)
    positions: Tensor  # (B, T)
    sees: Tensor  # (B, T, T)
    targets: Tensor  # (B, T)


def make_batch(packs: Sequence[Sequence[Document]]) -> Batch:
    """Lay packs out as rows, filled up to the longest."""
    shape = len(packs), max(sum(len(d.tokens) for d in pack) for pack in packs)
    tokens, positions = torch.zeros(2, *shape, dtype=torch.int64)
    owner, targets = torch.full(shape, -1), torch.full(shape, -100)  # of padding
    for row, pack in enumerate(packs):
        start = 0
        for number, document in enumerate(pack):
            ids = torch.tensor(document.tokens)
            stop, said = start + len(ids), len(document.prompt)
            tokens[row, start:stop] = ids
            positions[row, start:stop] = torch.arange(len(ids))
            owner[row, start:stop] = number
            # Token t predicts t + 1: the last of the prompt is the first that has a target.
            targets[row, start + said - 1 : stop - 1] = ids[said:]
            start = stop
    causal = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    return Batch(tokens, positions, (owner[:, :, None] == owner[:, None]) & causal, targets)


# -------------------------------------------------- 3.1.1  supervised fine-tuning


def train_step(
    model: Qwen2, micro_batches: Sequence[Batch], optimizer: torch.optim.Optimizer
) -> float:
    """One step on the mean loss over every target of all micro-batches.

    Count first, divide once: a mean of means would let a row with 10 targets weigh as much as one
    with 10,000, and packing would change the gradient.
    """
    count = sum(int((batch.targets >= 0).sum()) for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        logits = model(batch.tokens, batch.positions, batch.sees)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        (loss / count).backward()
        total += float(loss.detach()) / count
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def fine_tune(
    model: Qwen2, documents: Sequence[Document], epochs: int, lr: float, seed: int
) -> float:
    """SFT of `model` in place, six packs of 128 tokens a step; returns the last step's loss."""
    # Matrices decay; biases and norms do not.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    rng, loss = random.Random(seed), math.nan
    for _ in range(epochs):
        order = rng.sample(documents, len(documents))
        plans = plan_packs([len(document.tokens) for document in order], capacity=128)
        rng.shuffle(plans)  # best fit leaves them sorted by length
        for start in range(0, len(plans), 6):
            packs = [[order[i] for i in plan] for plan in plans[start : start + 6]]
            loss = train_step(model, [make_batch(packs)], optimizer)
    return loss


# -------------------------------------------------- 2.2  the merge phase: Arcee Fusion
# Left is kept; from Right comes what changed most. Both functions return the mask M of equation 4.

EPSILON = 1e-8
LAMBDA = 1.5
Fusion = Callable[[Tensor, Tensor], Tensor]


def fusion_as_printed(left: Tensor, right: Tensor) -> Tensor:
    """Equations 1 to 4 to the letter."""
    theta_l, theta_r = left.flatten().double(), right.flatten().double()
    x = theta_l.softmax(0) + EPSILON  # (1) all elements are the "samples"
    y = theta_r.softmax(0) + EPSILON
    score = (x * (x / y).log()).sum() * (theta_l - theta_r)  # (2) one KL(X || Y), a signed change
    s = score.sort().values
    half = (len(s) + 1) // 2  # an odd middle belongs to both halves
    q1, median, q3 = (middle(part) for part in (s[:half], s, s[-half:]))
    threshold = median + LAMBDA * (q3 - q1)  # (3)
    return ((score - threshold).clamp(min=0).ceil() > 0).view(left.shape)  # (4)


def middle(ordered: Tensor) -> Tensor:
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def fusion_exact(left: Tensor, right: Tensor) -> Tensor:
    """Arcee Fusion as the authors ran it (mergekit), without its rounding noise.

    Not as printed are: the change without its sign; a KL for each row of the last dimension, in the
    direction Right || Left; quartiles that are elements of the tensor; >= in place of >.
    """
    theta_l, theta_r = left.double(), right.double()
    p, q = theta_r.softmax(-1), theta_l.softmax(-1)
    # KL(p + eps || q + eps) with u = (p - q) / (q + eps), as a sum of terms that are not negative.
    # For two experts of one model it is about 1e-8, and p log(p / q), term by term, would drown it
    # in rounding; in float32 and bfloat16, which mergekit uses, any formula would.
    u = (p - q) / (q + EPSILON)
    kl = ((q + EPSILON) * ((1 + u) * u.log1p() - u)).sum(-1, keepdim=True)
    score = (theta_r - theta_l).abs() * kl
    s = score.flatten().sort().values
    q1, median, q3 = (s[int(share * (len(s) - 1))] for share in (0.25, 0.5, 0.75))
    return score >= median + LAMBDA * (q3 - q1)


Weights = dict[str, Tensor]


def merge(left: Weights, right: Weights, fusion: Fusion = fusion_exact) -> Weights:
    """Tensor by tensor: Right's elements where the mask says so, else Left's."""
    masks = {name: fusion(left[name], right[name]) for name in left}
    return {name: torch.where(mask, right[name], left[name]) for name, mask in masks.items()}


# -------------------------------------------------- 3.1.2  evaluation: pass@1


@torch.no_grad()
def sample(
    model: Qwen2, prompts: Sequence[list[int]], generator: torch.Generator, max_tokens: int = 16
) -> list[list[int]]:
    """One response to each prompt of one length, at T = 0.6 and top-p 0.95, up to its <eos>."""
    tokens = torch.tensor(prompts)
    for _ in range(max_tokens):
        p = (model(tokens)[:, -1] / 0.6).softmax(-1)
        p, ids = p.sort(-1, descending=True)
        p[p.cumsum(-1) - p >= 0.95] = 0.0  # a word stays while the mass before it is below p
        drawn = ids.gather(1, torch.multinomial(p, 1, generator=generator))
        tokens = torch.cat((tokens, drawn), 1)
    responses = tokens[:, len(prompts[0]) :].tolist()
    return [r[: r.index(ID["<eos>"])] if ID["<eos>"] in r else r for r in responses]


def answer(ids: list[int]) -> list[int] | None:
    """The ids after the last </think>; None where the thinking never ended."""
    closed = [i for i, token in enumerate(ids) if token == ID["</think>"]]
    return ids[closed[-1] + 1 :] if closed else None


def pass_at_1(
    model: Qwen2, questions: Sequence[Document], trials: int, seed: int
) -> tuple[float, float]:
    """Mean over questions of each one's share of right trials, and its standard error."""
    generator = torch.Generator().manual_seed(seed)
    asked = [question for question in questions for _ in range(trials)]
    responses = sample(model, [question.prompt for question in asked], generator)
    expected = [answer(question.response[:-1]) for question in asked]
    right = torch.tensor([answer(r) == e for r, e in zip(responses, expected, strict=True)])
    shares = right.double().view(len(questions), trials).mean(1)
    return float(shares.mean()), float(shares.std() / len(questions) ** 0.5)


# -------------------------------------------------- 3  the experiment


def experiment(seed: int = 0, scale: float = 1.0) -> tuple[dict[str, Weights], dict[str, Any]]:
    """The models and, by model and domain, pass@1 with its error; `scale` shrinks all the work."""
    world, rng = World(seed), random.Random(seed)

    def documents(domain: str, count: int, careless: bool = False) -> list[Document]:
        return [world.document(domain, rng, careless) for _ in range(max(8, int(scale * count)))]

    # The stand-in of DeepSeek-R1-Distill-Qwen-32B: it knows the domains, and is careless.
    model = Qwen2(Config())
    initialise(model, seed)
    lessons = [d for domain in DOMAINS for d in documents(domain, 6000, careless=True)]
    fine_tune(model, lessons, epochs=3, lr=4e-3, seed=seed)
    models = {"initial model": weights_of(model)}

    # 2.1 The branch phase: a copy of the initial model for each domain; and to compare with, one
    # for the union of their data, with as many steps as the three have together.
    data = {f"{domain} expert": documents(domain, 1500) for domain in DOMAINS}
    data["data mixture"] = [document for part in data.values() for document in part]
    for name, part in data.items():
        model = with_weights(models["initial model"])
        fine_tune(model, part, epochs=2, lr=5e-4, seed=seed)
        models[name] = weights_of(model)

    # 2.2 The merge phase, two at a time. The later one is Left, as in the released model.
    m, c, s = (models[f"{domain} expert"] for domain in DOMAINS)
    models["(math & science) & coding"] = merge(c, merge(s, m))
    models["the same, as printed"] = merge(c, merge(s, m, fusion_as_printed), fusion_as_printed)
    models["linear average"] = {name: (m[name] + c[name] + s[name]) / 3 for name in m}

    # 3.1.2 The evaluation, on questions of the full difficulty.
    questions = {domain: documents(domain, 200) for domain in DOMAINS}
    scores = {
        name: {
            domain: pass_at_1(with_weights(weights), asked, trials=2, seed=seed)
            for domain, asked in questions.items()
        }
        for name, weights in models.items()
    }
    return models, scores


def weights_of(model: Qwen2) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def with_weights(weights: Weights) -> Qwen2:
    model = Qwen2(Config())
    model.load_state_dict(weights, strict=False)  # a tied head is the embedding
    return model


def main() -> None:
    if len(sys.argv) > 1:  # --help, or an option that there is none of
        sys.exit(__doc__)
    torch.set_num_threads(1)
    print(f"{'pass@1 in %':28}" + "".join(f"{domain:>14}" for domain in DOMAINS))
    for name, scores in experiment()[1].items():
        cells = (f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in scores.values())
        print(f"{name:28}" + "".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
