"""Batch normalisation that says when its running statistics move."""

import torch

BN_MOMENTUM = 0.1  # of the running statistics


class BatchNorm(torch.nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of `[n, C, h, w]`, with the gain and bias that the caller gives or its own.

    In training mode with the statistics of the micro-batch, otherwise with running ones, which move only where
    `update_emas` says so. gain, bias: `[n, C]`, around 0 each (conditional batch norm, de Vries 2017).
    """

    mean_ema: torch.Tensor
    var_ema: torch.Tensor

    def __init__(self, num_channels: int, is_affine: bool = True, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones([num_channels])) if is_affine else None
        self.bias = torch.nn.Parameter(torch.zeros([num_channels])) if is_affine else None
        self.register_buffer("mean_ema", torch.zeros([num_channels]))
        self.register_buffer("var_ema", torch.ones([num_channels]))

    def forward(
        self,
        x: torch.Tensor,
        update_emas: bool = False,
        gain: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.training and update_emas:
            self.follow(x.detach())
        mean, var = (None, None) if self.training else (self.mean_ema, self.var_ema)
        y = torch.nn.functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.0, self.eps)
        if gain is None or bias is None:
            return y
        return torch.addcmul(bias[:, :, None, None], y, 1 + gain[:, :, None, None])

    @torch.no_grad()
    def follow(self, x: torch.Tensor) -> None:
        """The running statistics take in those of `[n, C, h, w]`."""
        var, mean = torch.var_mean(x, dim=[0, 2, 3])
        self.mean_ema.lerp_(mean, BN_MOMENTUM)
        self.var_ema.lerp_(var, BN_MOMENTUM)

    def extra_repr(self) -> str:
        return f"num_channels={len(self.mean_ema)}, is_affine={self.weight is not None}"
