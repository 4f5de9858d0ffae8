"""Bilinear `grid_sample` whose gradient can be differentiated again.

R1 penalises the gradient of D(augment(images)) with respect to the images, so that training needs its derivative. The
sampled image is linear in the input: the gradient is the transposed operator, and its derivative the operator itself.
Older versions of torch refuse that second step.
"""

import torch
import torch.nn.functional as F

enabled = False  # official name: programs set it; the derivative is there, whatever it is

_BILINEAR, _ZEROS, _ALIGN_CORNERS = 0, 0, False


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample `input` `[N, C, H, W]` at `grid` `[N, h, w, 2]` ((x, y) in [-1, 1] from edge to edge) -> `[N, C, h, w]`.

    Bilinear, zeros outside. Differentiable to any order with respect to `input`; ValueError if `grid` wants a gradient.
    """
    if grid.requires_grad:
        raise ValueError("grid requires a gradient, which grid_sample does not give")
    return _Sample.apply(input, grid)


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, grid):
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=_ALIGN_CORNERS)

    @staticmethod
    def backward(ctx, dy):
        (grid,) = ctx.saved_tensors
        return _SampleTransposed.apply(dy, grid, ctx.shape), None


class _SampleTransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, grid, shape):
        ctx.save_for_backward(grid)
        x = dy.new_empty([1]).expand(shape)  # the gradient for the image needs its shape, not its values
        op = torch.ops.aten.grid_sampler_2d_backward
        return op(dy, x, grid, _BILINEAR, _ZEROS, _ALIGN_CORNERS, output_mask=(True, False))[0]

    @staticmethod
    def backward(ctx, ddx):
        (grid,) = ctx.saved_tensors
        return _Sample.apply(ddx, grid), None, None
