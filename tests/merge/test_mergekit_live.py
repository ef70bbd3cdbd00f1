"""Our merge methods beside mergekit itself, where it is installed (`.[bench]`)."""

import warnings

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from test_methods import CASES, ours

from tinyr1.merge.fusion import FusionOptions, fuse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mergekit", reason="mergekit is not installed (.[bench])")
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup

pytestmark = pytest.mark.filterwarnings("ignore")


def theirs(method, parameters, models, base_index):
    group = TensorGroup.from_tensors(models, base_index=base_index)
    (result,) = registry.get(method)((group,), parameters=parameters)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 96), (500,), (4, 6, 50), (1, 1), (300, 3000)])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_arcee_fusion_to_the_bit(shape, dtype, scale):
    """Up to a million elements: above, both draw a sample of their own."""
    generator = torch.Generator().manual_seed(0)
    left = (0.02 * torch.randn(shape, generator=generator)).to(dtype)
    right = (left.float() + 0.02 * scale * torch.randn(shape, generator=generator)).to(dtype)
    expected = theirs("arcee_fusion", {}, [left, right], 0).to(dtype)
    assert torch.equal(fuse(left, right, FusionOptions(), "mergekit")[0], expected)


@pytest.mark.parametrize("case", CASES)
def test_the_golden_outputs_are_still_what_mergekit_computes(case):
    tensors = load_file(GOLDEN / "fusion" / "merge_methods.safetensors")
    method, parameters, count, base = CASES[case]
    for shape in ("matrix", "vector"):
        models = [tensors[f"{shape}.model{i}"] for i in range(count)]
        models += [tensors[f"{shape}.base"]] if base == "base" else []
        result = theirs(method, parameters, models, {"base": count, "first": 0, None: None}[base])
        assert torch.allclose(result, tensors[f"{shape}.{case}"], atol=1e-6)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_methods_agree_in_expectation(method):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(8, 40, generator=generator)
    models = [base + 0.1 * torch.randn(8, 40, generator=generator) for _ in range(2)]
    parameters = {"weight": [0.7, 0.5], "density": [0.6] * 2}
    if method.startswith("della"):
        parameters["epsilon"] = [0.2] * 2
    torch.manual_seed(0)
    draws = {"theirs": [], "ours": []}
    for _ in range(400):
        draws["theirs"].append(theirs(method, parameters, [*models, base], 2))
        mine = {**parameters, "density": [0.6]} | (
            {"epsilon": 0.2} if "epsilon" in parameters else {}
        )
        draws["ours"].append(ours(method, mine, models, base))
    means = {who: torch.stack(results).mean(0) for who, results in draws.items()}
    spread = torch.stack(draws["ours"]).std(0) / 400**0.5
    apart = (means["ours"] - means["theirs"]).abs() / (1.414 * spread).clamp(min=1e-4)
    assert apart.max() < 5  # standard errors, over 320 elements
    assert apart.mean() < 1.2
