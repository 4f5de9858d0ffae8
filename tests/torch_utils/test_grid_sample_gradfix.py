import pytest
import torch
import torch.nn.functional as F

from torch_utils.ops.grid_sample_gradfix import grid_sample


def sample_inputs(*shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([[0.8, 0.5, 0.1], [-0.3, 1.4, -0.2]], dtype=torch.float64).expand(shape[0], 2, 3)
    return x, F.affine_grid(theta, [*shape[:2], 5, 3], align_corners=False)


def test_same_as_torch():
    x, grid = sample_inputs(2, 3, 4, 6)
    y, expected = grid_sample(x, grid), F.grid_sample(x, grid, align_corners=False)
    assert torch.equal(y, expected)
    dy = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy))


def test_derivatives():
    x, grid = sample_inputs(2, 1, 3, 4)
    fn = lambda x: grid_sample(x, grid)  # noqa: E731
    assert torch.autograd.gradcheck(fn, x)
    assert torch.autograd.gradgradcheck(fn, x)


def test_refuses_a_grid_that_wants_a_gradient():
    x, grid = sample_inputs(1, 1, 3, 4)
    with pytest.raises(ValueError, match="grid requires a gradient"):
        grid_sample(x, grid.requires_grad_())
