"""StyleGAN3 generators, configurations T and R (Karras 2021, "Alias-Free Generative Adversarial Networks").

Every layer works on a signal of known bandwidth with a margin around the image: upsample, leaky ReLU, downsample
(`filtered_lrelu`), with low-pass filters designed from the cutoff and the width of the transition band. Names,
constructor arguments and state-dict keys are those that StyleGAN3 users know.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils import misc, persistence
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.modulated_conv2d import modulated_conv2d as modulated_convolution
from training.generator import EncodedMapping, SourceGenerator, normalize_2nd_moment
from training.layers.equalized import EqualizedLinear
from training.layers.precision import MixedPrecision

SQRT2 = float(np.sqrt(2))
MAX_DESIGN_TAPS = 256  # the configurations need 24 at most


def modulated_conv2d(
    x: torch.Tensor,
    w: torch.Tensor,
    s: torch.Tensor,
    demodulate: bool = True,
    padding: int | Sequence[int] = 0,
    input_gain: torch.Tensor | None = None,
) -> torch.Tensor:
    """Modulated convolution (Karras 2021, app. D): x `[n, in, h, w]`, w `[out, in, k, k]`, s `[n, in]`.

    With demodulation, weights and styles are first brought to unit mean square (styles over the whole batch).
    input_gain: scalar, `[in]` or `[n, in]`.
    """
    if demodulate:
        w = w * w.square().mean(dim=[1, 2, 3], keepdim=True).rsqrt()
        s = s * s.square().mean().rsqrt()
    pad_y, pad_x = (padding, padding) if isinstance(padding, int) else padding
    return modulated_convolution(
        x, w, s, demodulate=demodulate, input_gain=input_gain, padding=[pad_x, pad_x, pad_y, pad_y]
    )


@persistence.remembers_arguments
class FullyConnectedLayer(EqualizedLinear):
    """`x [n, in] -> [n, out]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        bias: bool = True,
        lr_multiplier: float = 1,
        weight_init: float = 1,
        bias_init: float | Sequence[float] = 0,
    ):
        super().__init__(in_features, out_features, activation, bias, lr_multiplier, weight_init, bias_init)


@persistence.remembers_arguments
class MappingNetwork(EncodedMapping):
    """z and label to w: z normalised, concatenated with the normalised label embedding, then `num_layers` layers."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
    ):
        super().__init__(z_dim, c_dim, w_dim, num_ws, w_avg_beta)
        self.num_layers = num_layers
        self.embed = FullyConnectedLayer(c_dim, w_dim) if c_dim > 0 else None
        features = [z_dim + (w_dim if c_dim > 0 else 0), *[w_dim] * num_layers]
        for index in range(num_layers):
            layer = FullyConnectedLayer(
                features[index], features[index + 1], activation="lrelu", lr_multiplier=lr_multiplier
            )
            setattr(self, f"fc{index}", layer)

    def embed_latent(self, z: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
        assert z is not None
        x = normalize_2nd_moment(z)
        if self.embed is not None:
            assert c is not None
            x = torch.cat([x, normalize_2nd_moment(self.embed(c.to(torch.float32)))], dim=1)
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        return x


@persistence.remembers_arguments
class SynthesisInput(torch.nn.Module):
    """Fourier features on a plane that w rotates and shifts (Karras 2021, sec. 3.1 and app. F).

    `transform` is a user's 3x3 matrix from output to input coordinates, in units of the image.
    """

    transform: torch.Tensor
    freqs: torch.Tensor
    phases: torch.Tensor

    def __init__(self, w_dim: int, channels: int, size: int | Sequence[int], sampling_rate: float, bandwidth: float):
        super().__init__()
        self.w_dim = w_dim
        self.channels = channels
        self.size = np.broadcast_to(np.asarray(size), [2])  # [width, height]
        self.plain_size = self.size.tolist()  # compiling takes an array for a tensor of the processor
        self.sampling_rate = sampling_rate
        self.bandwidth = bandwidth
        # Frequencies uniform over the disc of radius `bandwidth`.
        angle = 2 * np.pi * torch.rand([channels])
        radius = bandwidth * torch.rand([channels]).sqrt()
        freqs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)  # [C, 2]
        self.weight = torch.nn.Parameter(torch.randn([channels, channels]))
        # w starts without influence: rotation (1, 0), shift (0, 0).
        self.affine = FullyConnectedLayer(w_dim, 4, weight_init=0, bias_init=[1, 0, 0, 0])
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", torch.rand([channels]) - 0.5)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """`[n, w_dim]` -> `[n, channels, height, width]`."""
        rotation, shift = self.motion(w)  # [n, 2, 2], [n, 2]
        # A point p of the output shows the features at rotation @ (p - shift), p itself moved by `transform`.
        linear = rotation @ self.transform[:2, :2]  # [n, 2, 2]
        offset = (rotation @ (self.transform[:2, 2] - shift).unsqueeze(2)).squeeze(2)  # [n, 2]
        freqs = self.freqs @ linear  # [n, C, 2]
        phases = self.phases + offset @ self.freqs.t()  # [n, C]

        # Frequencies that a user's transform moves beyond the band fade out before they alias.
        band = self.sampling_rate / 2 - self.bandwidth
        amplitudes = (1 - (freqs.norm(dim=2) - self.bandwidth) / band).clamp(0, 1)  # [n, C]
        waves = torch.einsum("hwd,ncd->nhwc", self.grid(w.device), freqs) + phases[:, None, None, :]
        features = (2 * np.pi * waves).sin() * amplitudes[:, None, None, :]
        weight = self.weight / float(np.sqrt(self.channels))
        return (features @ weight.t()).permute(0, 3, 1, 2)

    def motion(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotation `[n, 2, 2]` and shift `[n, 2]` that w asks for."""
        params = self.affine(w)  # [n, 4]: cosine, sine (up to a factor), x, y
        params = params / params[:, :2].norm(dim=1, keepdim=True)
        cos, sin, shift = params[:, 0], params[:, 1], params[:, 2:]
        rotation = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
        return rotation, shift

    def grid(self, device: torch.device) -> torch.Tensor:
        """Centres of the output's pixels `[height, width, (x, y)]`, the image itself spanning [-0.5, 0.5]."""
        x, y = (
            ((torch.arange(length, device=device) + 0.5) / length - 0.5) * (length / self.sampling_rate)
            for length in self.plain_size
        )
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)

    def extra_repr(self) -> str:
        return (
            f"w_dim={self.w_dim}, channels={self.channels}, size={list(self.size)}, "
            f"sampling_rate={self.sampling_rate:g}, bandwidth={self.bandwidth:g}"
        )


@persistence.remembers_arguments
class SynthesisLayer(MixedPrecision):
    """Modulated convolution, then the filtered non-linearity from one sampling rate and band to the next."""

    works_on_planes = True
    magnitude_ema: torch.Tensor

    def __init__(
        self,
        w_dim: int,
        is_torgb: bool,  # whether it makes the image: 1x1, without demodulation, linear
        is_critically_sampled: bool,  # whether its band ends at the Nyquist frequency
        use_fp16: bool,
        in_channels: int,
        out_channels: int,
        # Of the planes before and after: pixels [width, height], pixels per image, and the band that is kept, in the units
        # of the rate: where it ends, and half the width of the transition.
        in_size: int | Sequence[int],
        out_size: int | Sequence[int],
        in_sampling_rate: float,
        out_sampling_rate: float,
        in_cutoff: float,
        out_cutoff: float,
        in_half_width: float,
        out_half_width: float,
        conv_kernel: int = 3,
        filter_size: int = 6,  # taps, times the factor of the resampling
        lrelu_upsampling: int = 2,  # of the rate at which the non-linearity is applied
        use_radial_filters: bool = False,  # for downsampling, unless critically sampled
        conv_clamp: float | None = 256,
        magnitude_ema_beta: float = 0.999,  # of the running mean square of the input
    ):
        super().__init__()
        self.w_dim = w_dim
        self.is_torgb = is_torgb
        self.is_critically_sampled = is_critically_sampled
        self.use_fp16 = use_fp16
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.in_size = np.broadcast_to(np.asarray(in_size), [2])  # [width, height]
        self.out_size = np.broadcast_to(np.asarray(out_size), [2])
        self.in_sampling_rate = in_sampling_rate
        self.out_sampling_rate = out_sampling_rate
        self.tmp_sampling_rate = max(in_sampling_rate, out_sampling_rate) * (1 if is_torgb else lrelu_upsampling)
        self.in_cutoff = in_cutoff
        self.out_cutoff = out_cutoff
        self.in_half_width = in_half_width
        self.out_half_width = out_half_width
        self.conv_kernel = 1 if is_torgb else conv_kernel
        self.conv_clamp = conv_clamp
        self.magnitude_ema_beta = magnitude_ema_beta

        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(torch.randn([out_channels, in_channels, self.conv_kernel, self.conv_kernel]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.register_buffer("magnitude_ema", torch.ones([]))

        self.up_factor = round(self.tmp_sampling_rate / in_sampling_rate)
        self.up_taps = filter_size * self.up_factor if self.up_factor > 1 and not is_torgb else 1
        self.register_buffer(
            "up_filter",
            self.design_lowpass_filter(self.up_taps, in_cutoff, in_half_width * 2, fs=self.tmp_sampling_rate),
        )
        self.down_factor = round(self.tmp_sampling_rate / out_sampling_rate)
        self.down_taps = filter_size * self.down_factor if self.down_factor > 1 and not is_torgb else 1
        self.down_radial = use_radial_filters and not is_critically_sampled
        self.register_buffer(
            "down_filter",
            self.design_lowpass_filter(
                self.down_taps, out_cutoff, out_half_width * 2, fs=self.tmp_sampling_rate, radial=self.down_radial
            ),
        )
        self.padding = self.centred_padding()
        self.in_shape = [None, in_channels, *self.in_size[::-1].tolist()]

    def centred_padding(self) -> list[int]:
        """`[x0, x1, y0, y1]` at the temporary rate such that input and output share their centre."""
        needed = (self.out_size - 1) * self.down_factor + 1  # samples the downsampling filter is centred on
        given = (self.in_size + self.conv_kernel - 1) * self.up_factor
        total = needed - given + self.up_taps + self.down_taps - 2
        before = (total + self.up_factor) // 2
        after = total - before
        return [int(before[0]), int(after[0]), int(before[1]), int(after[1])]

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        noise_mode: str = "random",
        force_fp32: bool = False,
        update_emas: bool = False,
    ) -> torch.Tensor:
        """`[n, in, in_h, in_w]`, `[n, w_dim]` -> `[n, out, out_h, out_w]`. There is no noise; noise_mode is unused."""
        misc.assert_shape(x, self.in_shape)
        if update_emas:
            power = x.detach().to(torch.float32).square().mean()
            self.magnitude_ema.copy_(power.lerp(self.magnitude_ema, self.magnitude_ema_beta))
        styles = self.affine(w)
        if self.is_torgb:
            styles = styles / float(np.sqrt(self.in_channels * self.conv_kernel**2))
        dtype, memory_format = self.precision(force_fp32, x.device)
        x = modulated_conv2d(
            x.to(dtype=dtype, memory_format=memory_format),
            w=self.weight,
            s=styles,
            demodulate=not self.is_torgb,
            padding=self.conv_kernel - 1,
            input_gain=self.magnitude_ema.rsqrt(),
        )
        return filtered_lrelu(
            x,
            fu=self.up_filter,
            fd=self.down_filter,
            b=self.bias.to(x.dtype),
            up=self.up_factor,
            down=self.down_factor,
            padding=self.padding,
            gain=1 if self.is_torgb else SQRT2,
            slope=1 if self.is_torgb else 0.2,
            clamp=self.conv_clamp,
        )

    @staticmethod
    def design_lowpass_filter(
        numtaps: int, cutoff: float, width: float, fs: float, radial: bool = False
    ) -> torch.Tensor | None:
        """Kaiser-windowed low-pass filter: `[numtaps]`, or `[numtaps, numtaps]` of radial symmetry; None for one tap.

        cutoff and transition width in the units of the sampling rate fs (Karras 2021, app. B).
        """
        import scipy.signal  # takes seconds to import, and only this needs it

        if not 1 <= numtaps <= MAX_DESIGN_TAPS:
            raise UserError(f"a filter of {numtaps} taps; 1 to {MAX_DESIGN_TAPS} can be designed")
        if numtaps == 1:
            return None
        if not radial:
            return torch.as_tensor(scipy.signal.firwin(numtaps, cutoff, width=width, fs=fs), dtype=torch.float32)
        # The ideal filter of a disc in frequency is a jinc; the window is that of the separable design.
        position = (np.arange(numtaps) - (numtaps - 1) / 2) / fs
        radius = np.hypot(position[:, None], position[None, :])
        window = np.kaiser(numtaps, scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(numtaps, width / (fs / 2))))
        taps = scipy.special.j1(2 * np.pi * cutoff * radius) / (np.pi * radius) * np.outer(window, window)
        return torch.as_tensor(taps / taps.sum(), dtype=torch.float32)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, in_size={list(self.in_size)}, "
            f"out_size={list(self.out_size)}, up={self.up_factor}, down={self.down_factor}, "
            f"cutoff={self.in_cutoff:.4g}->{self.out_cutoff:.4g}"
        )


@persistence.remembers_arguments
class SynthesisNetwork(torch.nn.Module):
    """ws to image through layers whose cutoffs grow geometrically (Karras 2021, sec. 3.2)."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_layers: int = 14,
        num_critical: int = 2,
        first_cutoff: float = 2,
        first_stopband: float = 2**2.1,
        last_stopband_rel: float = 2**0.3,
        margin_size: int = 10,
        output_scale: float = 0.25,
        num_fp16_res: int = 4,
        **layer_kwargs: Any,
    ):
        super().__init__()
        check_resolution(img_resolution)
        self.w_dim = w_dim
        self.num_ws = num_layers + 2
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.num_layers = num_layers
        self.num_critical = num_critical
        self.margin_size = margin_size
        self.output_scale = output_scale
        self.num_fp16_res = num_fp16_res

        # One entry per layer boundary, the output of the last layer included.
        progress = np.minimum(np.arange(num_layers + 1) / (num_layers - num_critical), 1)
        last_cutoff = img_resolution / 2
        last_stopband = last_cutoff * last_stopband_rel
        cutoffs = first_cutoff * (last_cutoff / first_cutoff) ** progress
        stopbands = first_stopband * (last_stopband / first_stopband) ** progress
        rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, img_resolution))))
        half_widths = np.maximum(stopbands, rates / 2) - cutoffs
        sizes = (rates + 2 * margin_size).astype(int)
        sizes[-2:] = img_resolution
        channels = np.rint(np.minimum(channel_base / 2 / cutoffs, channel_max)).astype(int)
        channels[-1] = img_channels

        self.input = SynthesisInput(
            w_dim, int(channels[0]), size=int(sizes[0]), sampling_rate=float(rates[0]), bandwidth=float(cutoffs[0])
        )
        self.layer_names = []
        for index in range(num_layers + 1):
            before = max(index - 1, 0)
            is_critical = index >= num_layers - num_critical
            layer = SynthesisLayer(
                w_dim,
                is_torgb=index == num_layers,
                is_critically_sampled=is_critical,
                use_fp16=bool(rates[index] * 2**num_fp16_res > img_resolution),
                in_channels=int(channels[before]),
                out_channels=int(channels[index]),
                in_size=int(sizes[before]),
                out_size=int(sizes[index]),
                in_sampling_rate=int(rates[before]),
                out_sampling_rate=int(rates[index]),
                in_cutoff=float(cutoffs[before]),
                out_cutoff=float(cutoffs[index]),
                in_half_width=float(half_widths[before]),
                out_half_width=float(half_widths[index]),
                **layer_kwargs,
            )
            name = f"L{index}_{sizes[index]}_{channels[index]}"
            setattr(self, name, layer)
            self.layer_names.append(name)

    def forward(self, ws: torch.Tensor, **layer_kwargs: Any) -> torch.Tensor:
        """`[n, num_ws, w_dim]` -> images `[n, img_channels, res, res]` float32."""
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        first, *rest = ws.to(torch.float32).unbind(dim=1)
        x = self.input(first)
        for name, w in zip(self.layer_names, rest, strict=True):
            x = getattr(self, name)(x, w, **layer_kwargs)
        return x.to(torch.float32) * self.output_scale

    def extra_repr(self) -> str:
        return (
            f"w_dim={self.w_dim}, num_ws={self.num_ws}, img_resolution={self.img_resolution}, "
            f"img_channels={self.img_channels}, num_layers={self.num_layers}, num_critical={self.num_critical}, "
            f"margin_size={self.margin_size}"
        )


def check_resolution(img_resolution: int) -> None:
    is_power_of_two = isinstance(img_resolution, int) and img_resolution & (img_resolution - 1) == 0
    if not is_power_of_two or img_resolution < 16:
        shown = img_resolution if isinstance(img_resolution, int) else "x".join(map(str, list(img_resolution)[::-1]))
        raise UserError(
            f"stylegan3 makes square images whose side is a power of two, from 16; not {shown}: "
            "resize with dataset_tool.py --resolution=WxH, or use --cfg=stylegan2"
        )


@persistence.persistent_class
class Generator(SourceGenerator):
    """StyleGAN3, configuration T or R by its `synthesis_kwargs`."""

    mapping_network = MappingNetwork
    synthesis_network = SynthesisNetwork
