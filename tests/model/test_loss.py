"""Chunked cross-entropy against torch's."""

import pytest
import torch
import torch.nn.functional as F

from tinyr1.model import loss as loss_module
from tinyr1.model.loss import cross_entropy_sum


@pytest.mark.parametrize("chunk_elements", [1, 40, 1 << 27])  # one row, a few rows, all at once
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_plain_cross_entropy(monkeypatch, chunk_elements, weighted):
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk_elements)
    torch.manual_seed(0)
    hidden = torch.randn(11, 6, requires_grad=True)
    weight = torch.randn(13, 6, requires_grad=True)
    targets = torch.randint(0, 13, (11,))
    weights = torch.rand(11) if weighted else None
    ours = cross_entropy_sum(hidden, weight, targets, weights)
    (ours * 0.37).backward()
    grads = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    expected = (plain * (1 if weights is None else weights)).sum()
    (expected * 0.37).backward()
    assert torch.allclose(ours, expected, rtol=1e-6)
    assert torch.allclose(grads[0], hidden.grad, atol=1e-6)
    assert torch.allclose(grads[1], weight.grad, atol=1e-6)


def test_no_targets_give_zero_and_zero_gradients():
    hidden = torch.randn(0, 4, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=True)
    loss = cross_entropy_sum(hidden, weight, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert torch.equal(weight.grad, torch.zeros(5, 4))


def test_bfloat16_accumulates_in_float32():
    torch.manual_seed(1)
    hidden, weight = torch.randn(600, 8), torch.randn(7, 8)
    targets = torch.randint(0, 7, (600,))
    low = cross_entropy_sum(hidden.bfloat16(), weight.bfloat16(), targets)
    exact = F.cross_entropy(
        hidden.bfloat16().double() @ weight.bfloat16().double().T, targets, reduction="sum"
    )
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=2e-3)  # the logits are bf16


def test_without_gradients_none_are_computed():
    with torch.no_grad():
        loss = cross_entropy_sum(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2]))
    assert not loss.requires_grad
