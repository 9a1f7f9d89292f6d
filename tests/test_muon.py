import pytest
import torch
from torch import Tensor, nn

from pipelines.training.muon import Muon, orthogonal


def gradients(parameters: list[nn.Parameter], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in parameters]


def run(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 4) -> None:
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(parameters, step), strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32), (1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_equalises_the_singular_values_and_keeps_the_singular_vectors(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(torch.stack([matrix, 100 * matrix]), dtype)
    torch.testing.assert_close(found[1], found[0], atol=0.03, rtol=0)  # the scale of the matrix has no effect
    found = found[0]
    assert found.shape == matrix.shape and found.dtype == torch.float32
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ found @ v.T  # diagonal if it has the singular vectors of the matrix
    assert rotated.diagonal().min() > 0.4 and rotated.diagonal().max() < 1.3
    assert (rotated - rotated.diagonal().diag()).abs().max() < 0.05


def test_a_step_of_a_matrix_is_that_of_torchs_muon() -> None:
    start = gradients([nn.Parameter(torch.zeros(24, 40))], 9)[0]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    run(Muon([{"params": [ours], "orthogonal": True}], lr=0.02, weight_decay=0.1, dtype=torch.bfloat16), [ours])
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    run(reference, [theirs])
    assert (ours - theirs).norm() < 0.05 * (theirs - start).norm()  # both round to bf16, in different orders


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_the_matrix_from_its_inputs_to_its_channels(memory_format: torch.memory_format) -> None:
    weights = gradients([nn.Parameter(torch.zeros(8, 4, 3, 3))], 9)[0]
    kernel = nn.Parameter(weights.clone(memory_format=memory_format))
    matrix = nn.Parameter(weights.flatten(1))
    run(Muon([{"params": [kernel], "orthogonal": True}], lr=0.02), [kernel])
    optimizer = Muon([{"params": [matrix], "orthogonal": True}], lr=0.02)
    for step in range(4):
        matrix.grad = gradients([kernel], step)[0].flatten(1)
        optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_all_other_parameters_are_stepped_by_adamw() -> None:
    ours, theirs = ([nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3, 4))] for _ in range(2))
    matrix = nn.Parameter(torch.ones(4, 4))
    run(Muon([{"params": [matrix], "orthogonal": True}, {"params": ours}], lr=0.02, weight_decay=0.1), [*ours, matrix])
    run(torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.1, betas=(0.9, 0.99), fused=True), theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_a_gradient_does_not_change() -> None:
    matrix, vector = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    Muon([{"params": [matrix], "orthogonal": True}, {"params": [vector]}], lr=0.02).step()
    assert torch.equal(matrix, torch.ones(4, 4)) and torch.equal(vector, torch.ones(4))
