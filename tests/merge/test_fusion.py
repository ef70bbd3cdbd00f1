"""Arcee Fusion against a hand-worked case, the formula in float64, and mergekit's golden cases."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from tinyr1.merge import fusion, quartiles
from tinyr1.merge.fusion import (
    ExactFusion,
    FusionOptions,
    arcee_fusion,
    closed_row_kl,
    fuse,
    relative_entropy,
    tukey_hinges,
)

FUSION = GOLDEN / "fusion"


def naive_kl(left, right, eps=1e-8):
    """The textbook formula with Python floats of 60 digits, where nothing cancels."""
    from decimal import Decimal, getcontext

    getcontext().prec = 60

    def softmax(row):
        weights = [Decimal(float(x)).exp() for x in row]
        total = sum(weights)
        return [w / total + Decimal(eps) for w in weights]

    p, q = softmax(right), softmax(left)
    return float(sum(a * (a / b).ln() for a, b in zip(p, q, strict=True)))


DEFAULTS = FusionOptions()


def importance(left, right):
    """Scores of a pair as the docstring has them."""
    rows = left.reshape(-1, left.shape[-1]), right.reshape(-1, left.shape[-1])
    kl = closed_row_kl(rows[0].double(), rows[1].double())
    return (right.double() - left.double()).abs() * kl.view(*left.shape[:-1], 1)


def row_kl(left, right):
    kl, spread = fusion.row_kl(left, right)
    assert np.array_equal(spread, (right - left).abs().amax(-1).numpy(), equal_nan=True)
    return kl


@pytest.mark.parametrize("kl", [row_kl, closed_row_kl])
@pytest.mark.parametrize("scale", [3.0, 1e-1, 1e-3, 1e-5, 1e-7, 1e-15])
def test_row_kl_equals_sixty_digit_arithmetic(scale, kl):
    torch.manual_seed(0)
    left = torch.randn(1, 40, dtype=torch.float64)
    right = left + scale * torch.randn(1, 40, dtype=torch.float64)
    expected = naive_kl(left[0], right[0])
    assert kl(left, right).item() == pytest.approx(expected, rel=1e-6 if scale > 1e-10 else 0.5)


@pytest.mark.parametrize("width", [5, 896, 27648])  # the last: probabilities of 36 epsilons
@pytest.mark.parametrize("scale", [0.03, 0.01, 1e-3, 1e-4])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_float32_row_kl_equals_float64(width, scale, shift):
    torch.manual_seed(0)
    left = 0.05 * torch.randn(16, width)
    right = left + scale * torch.randn(16, width) + shift  # a shift changes no softmax
    expected = closed_row_kl(left.double(), right.double())
    assert np.allclose(row_kl(left, right), expected, rtol=1e-5, atol=0)


def test_row_kl_of_rows_of_every_kind_in_one_chunk():
    """Each row goes its own way, whatever its neighbours are."""
    torch.manual_seed(0)
    left = torch.randn(9, 50) * 0.1
    right = left.clone()
    right[1] += 1e-3 * torch.randn(50)
    right[2] += 0.06 * torch.randn(50)  # fifth and sixth moments
    right[3] += torch.randn(50)  # too far for the series
    right[4] += 3.0  # a shift
    left[5], right[5] = 100 * torch.randn(50), 100 * torch.randn(50)  # saturated
    left[6, 0] = right[6, 0] = -30.0  # a probability below epsilon
    right[6, 1:] += 1e-2 * torch.randn(49)
    left[7], right[7] = 0.0, 1e-20 * torch.randn(50)
    left[8], right[8] = 3e38, -3e38
    alone = np.concatenate([row_kl(left[i : i + 1], right[i : i + 1]) for i in range(9)])
    together = row_kl(left, right)
    assert np.array_equal(together, alone, equal_nan=True)
    assert np.isnan(together[8])  # the difference is beyond float32
    expected = closed_row_kl(left.double(), right.double())
    assert np.allclose(together[:8], expected[:8], rtol=1e-5, atol=1e-30)
    assert together[0] == 0 and (together[:8] >= 0).all()  # noqa: PT018


@pytest.mark.parametrize("width", [896, 4864, 27648])
@pytest.mark.parametrize("shift", [0.3, 0.6, 0.9])
def test_rows_with_a_shift_that_the_series_takes(width, shift):
    """The means under q - eps have a mass of 1 - W eps: a shift makes that count."""
    torch.manual_seed(0)
    left = 0.02 * torch.randn(16, width)
    right = left + 1e-3 * (torch.randn(16, width) + shift)
    expected = closed_row_kl(left.double(), right.double())
    assert np.allclose(row_kl(left, right), expected, rtol=1e-5, atol=0)


def test_three_moments_are_enough_for_the_farthest_rows_that_have_three():
    reach = fusion.FAR[0] * 0.999
    for share in (0.5, 0.8, 0.85):
        right = torch.full((1, 100), reach, dtype=torch.float64)
        right[0, : int(100 * share)] = -reach
        left = torch.zeros(1, 100, dtype=torch.float64)
        expected = closed_row_kl(left, right)
        assert np.allclose(row_kl(left, right), expected, rtol=1e-5, atol=0)


def test_row_kl_is_never_negative_where_the_textbook_form_is():
    torch.manual_seed(1)
    left = (torch.randn(200, 300) * 0.02).bfloat16()
    right = (left.float() + 1e-4 * torch.randn(200, 300)).bfloat16()
    p, q = right.float().softmax(-1) + 1e-8, left.float().softmax(-1) + 1e-8
    assert ((p * (p / q).log()).sum(-1) < 0).float().mean() > 0.1  # float32, term by term
    assert (row_kl(left.double(), right.double()) >= 0).all()


def test_saturated_rows_stay_finite():
    left = torch.tensor([[0.0, 800.0, -800.0], [1e4, 0.0, 0.0]], dtype=torch.float64)
    right = torch.tensor([[800.0, 0.0, -800.0], [0.0, 1e4, 0.0]], dtype=torch.float64)
    kl = row_kl(left, right)
    assert np.isfinite(kl).all()
    assert kl[0].item() == pytest.approx(math.log(1 / 1e-8), rel=1e-6)


def test_relative_entropy_has_no_seam():
    u = torch.tensor([0.0199999, 0.0200001, -0.0199999, -0.0200001, 0.0, -1.0], dtype=torch.float64)
    exact = [(1 + x) * math.log1p(x) - x if x > -1 else 1.0 for x in u.tolist()]
    assert torch.allclose(relative_entropy(u), torch.tensor(exact, dtype=torch.float64), rtol=1e-9)


def test_hand_worked_4_by_4():
    left = torch.zeros(4, 4)
    right = torch.zeros(4, 4)
    right[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    right[1] = torch.tensor([0.5, 0.0, 0.0, 0.0])
    right[2] = torch.tensor([0.25, 0.25, 0.25, 0.25])  # a shift: softmax and so KL do not change
    fused, stats = fuse(left, right, DEFAULTS)
    # 13 scores are 0, so the quartiles are 0, the threshold is 0, and everything is taken.
    assert stats.quartiles == (0.0, 0.0, 0.0)
    assert stats.collapsed
    assert torch.equal(fused, right)
    # With distinct rows everywhere: sixteen scores, Q1, median, Q3 at ranks 3, 7, 11.
    right = torch.arange(16.0).view(4, 4).square() / 64
    scores = importance(left, right)
    ordered = scores.flatten().sort().values.tolist()
    fused, stats = fuse(left, right, FusionOptions(lam=1.0))
    assert stats.quartiles == pytest.approx((ordered[3], ordered[7], ordered[11]), rel=1e-6)
    threshold = ordered[7] + (ordered[11] - ordered[3])
    assert stats.threshold == pytest.approx(threshold, rel=1e-6)
    assert torch.equal(fused, torch.where(scores >= threshold, right, left))
    kl = naive_kl(left[3], right[3])
    assert scores[3, 3].item() == pytest.approx(225 / 64 * kl, rel=1e-9)


def test_threshold_is_inclusive():
    left = torch.zeros(8)
    right = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    # One KL and differences 1 to 8: Q1 is 2, the median 4, Q3 6 times it, all exact in binary.
    fused = arcee_fusion(left, right, lam=0.75)  # threshold 7
    assert fused.nonzero().flatten().tolist() == [6, 7]
    same = torch.ones(4, 4)
    assert torch.equal(arcee_fusion(same, same + 1), same + 1)  # all scores equal: all are taken


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0,), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_rank_and_dtype(shape, dtype):
    torch.manual_seed(2)
    left, right = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    fused = arcee_fusion(left, right)
    assert fused.shape == left.shape
    assert fused.dtype == dtype
    assert ((fused == left) | (fused == right)).all()


def test_different_dtypes_round_right_once_to_lefts():
    left = torch.randn(6, 8).bfloat16()
    right = torch.randn(6, 8)
    assert torch.equal(arcee_fusion(left, right), arcee_fusion(left, right.bfloat16()))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        arcee_fusion(torch.zeros(2), torch.zeros(3))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            arcee_fusion(torch.zeros(2), torch.tensor([0.0, bad]))
    with pytest.raises(ValueError, match="arithmetic='fast'"):
        arcee_fusion(torch.zeros(2), torch.zeros(2), arithmetic="fast")


def test_neither_chunks_nor_threads_nor_the_sample_change_a_bit(monkeypatch):
    torch.manual_seed(3)
    left = 0.02 * torch.randn(700, 333)
    right = left + 1e-3 * torch.randn(700, 333) * torch.rand(700, 1)
    right[:200] = left[:200]
    whole, stats = fuse(left, right, DEFAULTS)
    assert 0.02 < stats.taken / left.numel() < 0.2
    assert stats.max_change == (whole - left).abs().max()
    assert stats.changed == (left != right).sum()
    chunks = "tinyr1.model.rows.CHUNK_ELEMENTS"
    for name, value in ((chunks, 1), (chunks, 5000), ("tinyr1.merge.fusion.SAMPLE_ELEMENTS", 3000)):
        monkeypatch.setattr(name, value)
        again, other = fuse(left, right, DEFAULTS)
        assert torch.equal(again, whole)
        assert other == stats
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    long = torch.randn(1, 300_000)
    wide = [fuse(long, long * 1.001, DEFAULTS)[0]]
    torch.set_num_threads(1)
    wide += [fuse(long, long * 1.001, DEFAULTS)[0], fuse(left, right, DEFAULTS)[0]]
    torch.set_num_threads(threads)
    assert torch.equal(wide[0], wide[1])
    assert torch.equal(wide[2], whole)


def test_parts_without_a_change_are_read_once(monkeypatch):
    """A frozen embedding, or rows of tokens that no document had, need no scores."""
    monkeypatch.setattr("tinyr1.model.rows.CHUNK_ELEMENTS", 2000)
    torch.manual_seed(6)
    left = 0.02 * torch.randn(400, 100)
    right = left + 1e-3 * torch.randn(400, 100)
    right[40:140] = left[40:140]
    right[200:] = left[200:]

    class Read:
        """Rows that remember which were asked for."""

        def __init__(self, rows):
            self.rows, self.starts = rows, []

        def __getitem__(self, part):
            self.starts.append(part.start)
            return self.rows[part]

    rows = Read(left), Read(right)
    fused = ExactFusion(*rows, (400, 100), DEFAULTS)
    merged = torch.cat([fused[part] for part in fused.parts])
    assert torch.equal(merged, torch.where(importance(left, right) >= fused.threshold, right, left))
    assert rows[1].starts.count(0) == 3
    assert rows[1].starts.count(60) == rows[1].starts.count(380) == 1
    monkeypatch.undo()
    assert fused.stats == fuse(left, right, DEFAULTS)[1]


def test_a_chain_equals_two_fusions():
    torch.manual_seed(4)
    first, second, third = (0.02 * torch.randn(60, 40) for _ in range(3))
    middle = arcee_fusion(first, second)
    inner = ExactFusion(first, second, (60, 40), DEFAULTS)
    outer = ExactFusion(third, inner, (60, 40), DEFAULTS)
    merged = torch.cat([outer[part] for part in outer.parts])
    assert torch.equal(merged, arcee_fusion(third, middle))
    assert inner.stats == fuse(first, second, DEFAULTS)[1]


def test_quantiles_of_what_changed_cure_the_collapse():
    torch.manual_seed(5)
    left = 0.02 * torch.randn(40, 50)
    right = left.clone()
    right[:, :10] += 1e-3 * torch.randn(40, 10)  # a fifth of the elements
    for arithmetic in ("exact", "mergekit"):
        stats = fuse(left.double(), right.double(), DEFAULTS, arithmetic)[1]
        assert stats.threshold == 0
        assert stats.taken == stats.changed == 400
    assert fuse(left, right, DEFAULTS)[1].collapsed
    for arithmetic in fusion.ARITHMETICS:
        options = FusionOptions(quantiles="changed")
        stats = fuse(left.double(), right.double(), options, arithmetic)[1]
        assert 0 < stats.taken < 200
        scores = importance(left.double(), right.double())[left != right].sort().values
        q1, median, q3 = scores[99], scores[199], scores[299]
        if arithmetic == "exact":
            assert stats.taken == (scores >= median + 1.5 * (q3 - q1)).sum()
    assert fuse(left, left, FusionOptions(quantiles="changed"))[1].taken == 0


def test_lambda_and_epsilon_reach_every_arithmetic():
    torch.manual_seed(6)
    left = 4 * torch.randn(30, 20)
    right = left + 0.3 * torch.randn(30, 20)
    for arithmetic in fusion.ARITHMETICS:
        usual = fuse(left, right, DEFAULTS, arithmetic)[1]
        assert fuse(left, right, FusionOptions(lam=0.5), arithmetic)[1].taken > usual.taken
        changed = fuse(left, right, FusionOptions(epsilon=0.1), arithmetic)[1]
        assert changed.threshold < 0.9 * usual.threshold


def test_equal_scores_are_all_taken_whatever_the_rounding():
    """Every |R - L| is one step: every score equals the threshold, to the bit."""
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        left = 1 + torch.randint(0, 64, (1, 896), generator=generator) / 128
        up = torch.randint(0, 2, (1, 896), generator=generator) * 2 - 1
        right = left + up * (2 * seed + 1) / 1024
        stats = fuse(left, right, DEFAULTS)[1]
        assert stats.taken == 896
        assert stats.threshold == stats.quartiles[1]


def test_columns_that_repeat_do_not_blind_the_sample(monkeypatch):
    """Every 64th column is unchanged, and one of 63: still only a few scores are collected."""
    collected = []
    original = quartiles.pick
    monkeypatch.setattr(
        quartiles, "pick", lambda *a: collected.append(len(original(*a))) or original(*a)
    )
    for period in (63, 64):
        torch.manual_seed(period)
        left = 0.02 * torch.randn(1024, 1024)
        right = left + 1e-3 * torch.randn(1024, 1024)
        right[:, ::period] = left[:, ::period]
        collected.clear()
        fused = arcee_fusion(left, right)
        assert sum(collected) < left.numel() / 4
        scores = importance(left, right).flatten().sort().values
        q1, median, q3 = (float(scores[int(q * (len(scores) - 1))]) for q in (0.25, 0.5, 0.75))
        threshold = median + 1.5 * (q3 - q1)
        clear = (importance(left, right) - threshold).abs() > 1e-5 * threshold
        expected = torch.where(importance(left, right) >= threshold, right, left)
        assert torch.equal(fused[clear], expected[clear])


def test_non_finite_in_both_and_what_does_not_fit_are_refused():
    for arithmetic in fusion.ARITHMETICS:
        same = torch.tensor([1.0, math.nan, 2.0])
        with pytest.raises(ValueError, match="NaN or infinity"):
            arcee_fusion(same, same, arithmetic=arithmetic)
        with pytest.raises(ValueError, match="NaN or infinity"):  # 70000 is infinite in float16
            arcee_fusion(torch.ones(3).half(), torch.full((3,), 7e4), arithmetic=arithmetic)
    left = torch.randn(2000, 64)
    right = left + 1e-3
    left[:900], right[:900] = 3e38, -3e38
    with pytest.raises(ValueError, match="or in the difference"):
        arcee_fusion(left, right)
    with pytest.raises(ValueError, match="floating"):
        arcee_fusion(torch.ones(3, dtype=torch.int32), torch.ones(3, dtype=torch.int32))


def test_parameters_are_tensors():
    left, right = torch.nn.Parameter(torch.randn(4, 5)), torch.nn.Parameter(torch.randn(4, 5))
    for arithmetic in fusion.ARITHMETICS:
        fused = arcee_fusion(left, right, arithmetic=arithmetic)
        assert torch.equal(fused, arcee_fusion(left.data, right.data, arithmetic=arithmetic))


def golden_cases():
    return sorted(json.loads((FUSION / "cases.json").read_text()))


def golden(case):
    """The tensors of a case by field, and its facts."""
    tensors = load_file(FUSION / "golden.safetensors")
    facts = json.loads((FUSION / "cases.json").read_text())[case]
    fields = {k.removeprefix(f"{case}."): v for k, v in tensors.items() if k.startswith(f"{case}.")}
    return fields, facts


@pytest.mark.parametrize("case", golden_cases())
def test_golden_float64_masks(case):
    field, facts = golden(case)
    left, right = field["left"], field["right"]
    if facts["has_nonfinite"]:
        with pytest.raises(ValueError, match="NaN or infinity"):
            arcee_fusion(left, right)
        return
    if case.startswith("constant_shift_kl0"):
        pytest.skip("the exact KL is 0: the golden mask is itself rounding noise")
    fused = arcee_fusion(left, right)
    expected = torch.where(field["exact_mask"].bool(), right, left)
    threshold = field["exact_threshold"].double()
    gap = (field["exact_importance"].double() - threshold).abs() / threshold.abs().clamp(min=1e-300)
    clear = (gap > 1e-5) | (threshold == 0)
    assert torch.equal(fused[clear.view(fused.shape)], expected[clear.view(fused.shape)])
    assert float(clear.float().mean()) >= 0.5


@pytest.mark.parametrize("case", golden_cases())
def test_golden_mergekit_outputs_to_the_bit(case):
    """mergekit's mask and output; what depends on rounding, only where torch is the same."""
    field, facts = golden(case)
    if facts["has_nonfinite"]:
        pytest.skip("refused here, passed on silently there")
    same_kernels = torch.__version__.startswith("2.13.0") and (
        torch.backends.cpu.get_cpu_capability() == "AVX2"
    )
    if not facts["robust"] and not same_kernels:
        pytest.skip("its mask is rounding noise of torch 2.13.0 with AVX2")
    left, right = field["left"], field["right"]
    fused, stats = fuse(left, right, DEFAULTS, "mergekit")
    expected = field["fused"] if left.dtype == torch.float32 else field["fused_bf16"]
    assert torch.equal(fused, expected)
    quartiles = torch.tensor(stats.quartiles, dtype=torch.float32)
    if same_kernels:
        assert torch.equal(quartiles, field["quartiles"].float().flatten())


def test_mergekit_samples_large_tensors_by_seed(monkeypatch):
    monkeypatch.setattr("tinyr1.merge.fusion.MERGEKIT_SAMPLE", 50)
    torch.manual_seed(4)
    left, right = torch.randn(20, 20), torch.randn(20, 20)

    def threshold(seed):
        generator = torch.Generator().manual_seed(seed)
        return fuse(left, right, FusionOptions(generator=generator), "mergekit")[1].threshold

    assert threshold(1) == threshold(1) != threshold(2)


def test_paper_arithmetic_by_hand():
    assert tukey_hinges(torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])) == (2, 3, 4)  # 3 in both halves
    assert tukey_hinges(torch.tensor([4.0, 1.0, 3.0, 2.0])) == (1.5, 2.5, 3.5)
    assert tukey_hinges(torch.tensor([7.0])) == (7, 7, 7)
    left = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])
    right = torch.tensor([[1.5, 1.9, 3.2], [4.1, 5.3, 1.0]])
    x = left.flatten().double().softmax(0) + 1e-8
    y = right.flatten().double().softmax(0) + 1e-8
    kl = float((x * (x / y).log()).sum())
    scores = [kl * d for d in (-0.5, 0.1, -0.2, -0.1, -0.3, 8.0)]
    fused, stats = fuse(left, right, DEFAULTS, "paper")
    # Sorted by L - R: -0.5 -0.3 -0.2 | -0.1 0.1 8; hinges are the middles of the halves.
    assert stats.quartiles == pytest.approx((kl * -0.3, kl * -0.15, kl * 0.1), rel=1e-5)
    threshold = kl * (-0.15 + 1.5 * 0.4)
    assert stats.threshold == pytest.approx(threshold, rel=1e-5)
    taken = torch.tensor([s > threshold for s in scores]).view(2, 3)
    assert torch.equal(fused, torch.where(taken, right, left))
    assert taken.sum() == 1  # signed: only where Left is larger
    # Strict: with all scores at the threshold nothing is taken.
    same = torch.ones(4)
    assert torch.equal(arcee_fusion(same, same - 1, arithmetic="paper"), same)
