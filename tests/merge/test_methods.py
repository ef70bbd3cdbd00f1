"""Merge methods against mergekit 0.1.5's outputs; the random ones by density and expectation."""

import importlib.util
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from tinyr1.merge.fusion import COPIES, FusionOptions, arcee_fusion, fuse
from tinyr1.merge.methods import METHODS, MergeParams
from tinyr1.merge.options import MethodName


def cases():
    path = GOLDEN / "fusion" / "make_merge_methods.py"
    spec = importlib.util.spec_from_file_location("make_merge_methods", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


CASES = cases()
NAMES = {"weight": "weights", "lambda": "lam"}
GENERATOR = torch.Generator().manual_seed(0)


def ours(method, parameters, models, base):
    """Run our method with mergekit's parameters."""
    values = {}
    for name, value in parameters.items():
        if name in ("density", "gamma", "scale"):
            value = value[0]  # one for all models here
        values[NAMES.get(name, name)] = tuple(value) if isinstance(value, list) else value
    return METHODS[method].fn(models, base, MergeParams(**values), GENERATOR)


@pytest.mark.parametrize("shape", ["matrix", "vector"])
@pytest.mark.parametrize("case", CASES)
def test_methods_equal_mergekit(case, shape):
    tensors = load_file(GOLDEN / "fusion" / "merge_methods.safetensors")
    method, parameters, count, base = CASES[case]
    models = [tensors[f"{shape}.model{i}"] for i in range(count)]
    result = ours(method, parameters, models, tensors[f"{shape}.base"] if base == "base" else None)
    assert (result - tensors[f"{shape}.{case}"]).abs().max() < 1e-5
    if case != "passthrough":  # the case must be able to fail
        assert all((result - model).abs().max() > 1e-3 for model in models)


def test_the_command_line_knows_every_method():
    assert get_args(MethodName) == tuple(METHODS)


def test_every_deterministic_method_has_a_case():
    drawn = {"dare_linear", "dare_ties", "della", "della_linear"}
    assert {c[0] for c in CASES.values()} == set(METHODS) - drawn - {"arcee_fusion"}


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_random_methods_keep_the_density_and_the_norm(method):
    torch.manual_seed(0)
    base, change = torch.randn(40, 50), torch.randn(40, 50)
    results = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        params = MergeParams(density=0.3, epsilon=0.1)
        merged = METHODS[method].fn([base + change], base, params, generator) - base
        kept = merged.abs() > 1e-6
        # 2,000 draws: a standard error of one percent.
        assert float(kept.float().mean()) == pytest.approx(0.3, abs=0.05)
        assert float(merged.abs().sum()) == pytest.approx(float(change.abs().sum()), rel=1e-3)
        results.append(merged)
    again = (
        METHODS[method].fn([base + change], base, params, torch.Generator().manual_seed(59)) - base
    )
    assert torch.equal(again, results[-1])
    mean = torch.stack(results).mean(0)
    slope = float((mean * change).sum() / change.square().sum())
    assert slope == pytest.approx(1.0, abs=0.25)  # the expected change is the change


def test_della_keeps_large_changes_more_often():
    change = torch.linspace(-1, 1, 400).repeat(50, 1)
    params = MergeParams(density=0.5, epsilon=0.4)
    zero = torch.zeros_like(change)
    merged = METHODS["della"].fn([change], zero, params, torch.Generator().manual_seed(0))
    kept = (merged != 0).float()
    large = change.abs() > 0.5
    assert kept[large].mean() == pytest.approx(0.7, abs=0.03)
    assert kept[~large].mean() == pytest.approx(0.3, abs=0.03)


def test_ties_outvotes_a_minority_sign():
    base = torch.zeros(3)
    models = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, -3.0, 0.0])]
    merged = METHODS["ties"].fn(models, base, MergeParams(), GENERATOR)
    assert merged.tolist() == [1.5, -3.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_result_has_the_first_models_dtype_and_equal_models_stay(method, dtype):
    torch.manual_seed(1)
    tensor = torch.randn(6, 5).to(dtype)
    count = METHODS[method].max_models or 3
    base = tensor.clone() if METHODS[method].needs_base else None
    params = MergeParams(density=0.5)
    merged = METHODS[method].fn([tensor] * count, base, params, GENERATOR)
    assert merged.dtype == dtype
    assert (merged.double() - tensor.double()).abs().max() < (1e-6 if dtype.itemsize > 2 else 0.02)


@pytest.mark.parametrize("arithmetic", ["exact", "mergekit", "paper"])
def test_arcee_fusion_is_computed_in_the_models_dtype(arithmetic):
    """mergekit's rounding is a part of its arithmetic."""
    torch.manual_seed(2)
    left = torch.randn(64, 48).bfloat16()
    right = (left + 0.02 * torch.randn(64, 48)).bfloat16()
    params = MergeParams(arithmetic=arithmetic)
    merged = METHODS["arcee_fusion"].fn([left, right], None, params, GENERATOR)
    expected = arcee_fusion(left, right, arithmetic=arithmetic)
    assert torch.equal(merged, expected)
    in_float32 = arcee_fusion(left.float(), right.float(), arithmetic=arithmetic).bfloat16()
    assert torch.equal(merged, in_float32) == (arithmetic != "mergekit")


def test_methods_that_cannot_merge_say_so():
    up = torch.ones(4)
    with pytest.raises(ValueError, match="directions cancel"):
        METHODS["multislerp"].fn([up, -up, up * 0], None, MergeParams(weights=(1, 1, 1)), GENERATOR)
    with pytest.raises(ValueError, match=r"density 0\.1"):
        METHODS["della"].fn([up], up * 0, MergeParams(density=0.1), GENERATOR)


def resident(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def peak_copies(work, element_count):
    """Float32 copies of a tensor that `work` holds at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = resident("VmRSS")
    result = work()
    peak = resident("VmHWM") - before
    del result
    return peak / (4 * element_count)


SLACK = 2  # copies, 32 MB here, that the allocator keeps: of the 600 MB that a merge has anyway


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_as_the_dry_run_says():
    shape = (1400, 1400)
    base = torch.randn(shape)
    models = [base + 0.01 * torch.randn(shape) for _ in range(3)]
    params = MergeParams(density=0.5, select_topk=0.5)
    for name, method in METHODS.items():
        for count in (2, 3):
            if method.elementwise or name == "arcee_fusion" or count > (method.max_models or 9):
                continue
            origin = base if method.needs_base else None

            def work(method=method, count=count, origin=origin):
                return method.fn(models[:count], origin, params, GENERATOR)

            limit = method.copies(count) + SLACK
            assert peak_copies(work, base.numel()) < limit, (name, count)
    for arithmetic in ("mergekit", "paper"):
        copies = peak_copies(
            lambda arithmetic=arithmetic: fuse(models[0], base, FusionOptions(), arithmetic),
            base.numel(),
        )
        assert copies < COPIES[arithmetic] + SLACK, arithmetic
