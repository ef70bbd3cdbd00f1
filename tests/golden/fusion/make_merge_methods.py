"""Make merge_methods.safetensors: outputs of mergekit 0.1.5 for small tensors, by method and case.

    pip install -c constraints.txt -e '.[bench]' && python tests/golden/fusion/make_merge_methods.py

Deterministic methods only; what draws at random is tested by density and expectation instead.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

# name -> (method, mergekit's parameters, models, which input is the base: "base", "first" or None)
CASES = {
    "linear": ("linear", {"weight": [0.5, 0.3, 0.4]}, 3, None),
    "linear_sum": ("linear", {"weight": [0.5, 0.3, 0.4], "normalize": False}, 3, None),
    "slerp": ("slerp", {"t": 0.3}, 2, "first"),
    "nuslerp": ("nuslerp", {"weight": [0.6, 0.2]}, 2, None),
    "nuslerp_base": ("nuslerp", {"weight": [0.6, 0.2]}, 2, "base"),
    "nuslerp_last": ("nuslerp", {"weight": [0.6, 0.2], "nuslerp_flatten": False}, 2, None),
    "nuslerp_first": (
        "nuslerp",
        {"weight": [0.6, 0.2], "nuslerp_flatten": False, "nuslerp_row_wise": True},
        2,
        "base",
    ),
    "multislerp": ("multislerp", {"weight": [0.5, 0.3, 0.4]}, 3, None),
    "multislerp_base": ("multislerp", {"weight": [0.5, 0.3, 0.4]}, 3, "base"),
    "karcher": ("karcher", {}, 3, None),
    "karcher_far": ("karcher", {"max_iter": 1, "tol": 0.5}, 3, None),
    "task_arithmetic": ("task_arithmetic", {"weight": [0.5, 0.3, 0.4], "lambda": 0.7}, 3, "base"),
    "ties": ("ties", {"weight": [0.5, 0.3, 0.4], "density": [0.4] * 3}, 3, "base"),
    "ties_one": ("ties", {"weight": [1.0] * 3, "density": [1.0] * 3, "lambda": 0.5}, 3, "base"),
    "ties_rescaled": (
        "ties",
        {"weight": [0.5, 0.3, 0.4], "density": [0.4] * 3, "rescale": True},
        3,
        "base",
    ),
    "breadcrumbs": (
        "breadcrumbs",
        {"weight": [0.5, 0.3, 0.4], "density": [0.6] * 3, "gamma": [0.1] * 3},
        3,
        "base",
    ),
    "breadcrumbs_ties": (
        "breadcrumbs_ties",
        {"weight": [0.5, 0.3, 0.4], "density": [0.6] * 3, "gamma": [0.1] * 3},
        3,
        "base",
    ),
    "sce": ("sce", {}, 3, "base"),
    "sce_topk": ("sce", {"select_topk": 0.5}, 3, "base"),
    "ram": ("ram", {"epsilon": 0.05}, 3, "base"),
    "ramplus_tl": ("ramplus_tl", {"epsilon": 0.05}, 3, "base"),
    "ramplus_tl_strong": ("ramplus_tl", {"epsilon": 0.05, "r": 0.5, "alpha": 0.8}, 3, "base"),
    "model_stock": ("model_stock", {}, 3, "base"),
    "model_stock_rows": ("model_stock", {"filter_wise": True}, 3, "base"),
    "nearswap": ("nearswap", {"t": 0.05}, 2, "first"),
    "passthrough": ("passthrough", {}, 1, None),
    "passthrough_scaled": ("passthrough", {"scale": [0.5]}, 1, None),
}


def inputs() -> dict[str, torch.Tensor]:
    """A base and three models near it, as a matrix and as a vector."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for shape_name, shape in (("matrix", (12, 10)), ("vector", (9,))):
        base = torch.randn(shape, generator=generator)
        tensors[f"{shape_name}.base"] = base
        for i in range(3):
            change = torch.randn(shape, generator=generator) * 0.1
            tensors[f"{shape_name}.model{i}"] = base + change
    return tensors


def main() -> None:
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup

    tensors = inputs()
    for shape in ("matrix", "vector"):
        for case, (method, parameters, count, base) in CASES.items():
            models = [tensors[f"{shape}.model{i}"] for i in range(count)]
            if base == "base":
                models.append(tensors[f"{shape}.base"])
            base_index = {"base": count, "first": 0, None: None}[base]
            group = TensorGroup.from_tensors(models, base_index=base_index)
            (result,) = registry.get(method)((group,), parameters=parameters)
            tensors[f"{shape}.{case}"] = result.clone()
    out = Path(__file__).with_name("merge_methods.safetensors")
    save_file({k: v.contiguous() for k, v in tensors.items()}, out)
    print(f"{len(tensors)} tensors: {out}")


if __name__ == "__main__":
    main()
