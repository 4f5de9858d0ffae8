"""StyleGAN2 generator and discriminator (Karras 2020, "Analyzing and Improving the Image Quality of StyleGAN").

Names, constructor arguments and state-dict keys are those that StyleGAN2-ADA and StyleGAN3 users know. In front of the
mapping network sits an encoder (`training.sources.encoders`), so that `G(x, c)` takes source images as well as z. Resolutions
are one number, or `[height, width]` where both sides are a small number times the same power of two.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torch_utils import misc, persistence, seeding
from torch_utils.ops import bias_act, upfirdn2d
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulated_conv2d import modulated_conv2d as modulated_convolution
from training.discriminator import ImageDiscriminator, MinibatchStdLayer
from training.generator import EncodedMapping, SourceGenerator, normalize_2nd_moment
from training.layers.equalized import EqualizedLinear
from training.layers.precision import MixedPrecision
from training.layers.pyramid import block_name, image_size, nominal_resolution, resolution_pyramid

Resolution = int | Sequence[int]
HALF = float(np.sqrt(0.5))  # keeps the variance of a sum of two branches


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    noise: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> torch.Tensor:
    """Modulated convolution with resampling and additive noise.

    x `[n, in, h, w]`, weight `[out, in, kh, kw]`, styles `[n, in]`, noise broadcastable to the output.
    `fused_modconv` scales the weights (one grouped convolution) instead of the activations.
    """
    if x.dtype == torch.float16 and demodulate:
        weight, styles = _prescale_for_half(weight, styles)
    y = modulated_convolution(
        x,
        weight,
        styles,
        demodulate=demodulate,
        grouped=fused_modconv,
        f=resample_filter,
        up=up,
        down=down,
        padding=padding,
        flip_weight=flip_weight,
    )
    return y if noise is None else y + noise.to(y.dtype)


def _prescale_for_half(weight: torch.Tensor, styles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bound weights and styles by their largest magnitude; demodulation cancels it, float16 no longer overflows."""
    fan_in = weight[0].numel()
    weight = weight / (weight.abs().amax(dim=[1, 2, 3], keepdim=True) * math.sqrt(fan_in))
    return weight, styles / styles.abs().amax(dim=1, keepdim=True)


@persistence.remembers_arguments
class FullyConnectedLayer(EqualizedLinear):
    """`x [n, in] -> [n, out]`. The stored bias is not divided by the learning-rate multiplier."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1,
        bias_init: float = 0,
    ):
        super().__init__(
            in_features, out_features, activation, bias, lr_multiplier, bias_init=bias_init * lr_multiplier
        )


@persistence.remembers_arguments
class Conv2dLayer(torch.nn.Module):
    """Convolution with equalised weights, optional up- or downsampling, bias, activation and clamp."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = [1, 3, 3, 1],
        conv_clamp: float | None = None,
        channels_last: bool = False,
        trainable: bool = True,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.activation = activation
        self.up = up
        self.down = down
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        self.weight_gain = 1 / float(np.sqrt(in_channels * kernel_size**2))
        self.act_gain = bias_act.ACTIVATIONS[activation].def_gain
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size]).to(memory_format=memory_format)
        offset = torch.zeros([out_channels]) if bias else None
        if trainable:
            self.weight = torch.nn.Parameter(weight)
            self.bias = None if offset is None else torch.nn.Parameter(offset)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("bias", offset)

    def forward(self, x: torch.Tensor, gain: float = 1) -> torch.Tensor:
        """`[n, in, h, w] -> [n, out, h * up / down, w * up / down]`."""
        x = conv2d_resample(
            x,
            (self.weight * self.weight_gain).to(x.dtype),
            f=self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            flip_weight=self.up == 1,
        )
        bias = None if self.bias is None else self.bias.to(x.dtype)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act.bias_act(x, bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, activation={self.activation}, "
            f"up={self.up}, down={self.down}"
        )


@persistence.remembers_arguments
class MappingNetwork(EncodedMapping):
    """z and label to w: both normalised, concatenated, then `num_layers` leaky-ReLU layers at 1/100 learning rate."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.998,
    ):
        super().__init__(z_dim, c_dim, w_dim, num_ws, w_avg_beta)
        self.num_layers = num_layers
        embed_features = (w_dim if embed_features is None else embed_features) if c_dim > 0 else 0
        hidden = w_dim if layer_features is None else layer_features
        features = [z_dim + embed_features, *[hidden] * (num_layers - 1), w_dim]
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        for index in range(num_layers):
            layer = FullyConnectedLayer(
                features[index], features[index + 1], activation=activation, lr_multiplier=lr_multiplier
            )
            setattr(self, f"fc{index}", layer)

    def embed_latent(self, z: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
        parts = []
        assert (z is not None or self.z_dim == 0) and (c is not None or self.c_dim == 0)
        if z is not None and self.z_dim > 0:
            parts.append(normalize_2nd_moment(z))
        if c is not None and self.c_dim > 0:
            parts.append(normalize_2nd_moment(self.embed(c.to(torch.float32))))
        x = torch.cat(parts, dim=1)  # [n, z_dim + embed_features]
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        return x


@persistence.remembers_arguments
class SynthesisLayer(torch.nn.Module):
    """Modulated convolution, noise, bias, activation."""

    noise_const: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: Resolution,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = [1, 3, 3, 1],
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.w_dim = w_dim
        self.resolution = resolution
        self.up = up
        self.use_noise = use_noise
        self.activation = activation
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        self.act_gain = bias_act.ACTIVATIONS[activation].def_gain
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
        self.weight = torch.nn.Parameter(weight.to(memory_format=memory_format))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(image_size(resolution)))
            self.noise_strength = torch.nn.Parameter(torch.zeros([]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))

    def forward(
        self, x: torch.Tensor, w: torch.Tensor, noise_mode: str = "random", fused_modconv: bool = True, gain: float = 1
    ) -> torch.Tensor:
        """`[n, in, h / up, w / up]`, `[n, w_dim]` -> `[n, out, h, w]`; noise_mode: random, const or none."""
        height, width = image_size(self.resolution)
        misc.assert_shape(x, [None, self.in_channels, height // self.up, width // self.up])
        x = modulated_conv2d(
            x=x,
            weight=self.weight,
            styles=self.affine(w),
            noise=self.noise(x, noise_mode),
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
            fused_modconv=fused_modconv,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act.bias_act(x, self.bias.to(x.dtype), act=self.activation, gain=self.act_gain * gain, clamp=clamp)

    def noise(self, x: torch.Tensor, noise_mode: str) -> torch.Tensor | None:
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode must be random, const or none, not {noise_mode!r}")
        if not self.use_noise or noise_mode == "none":
            return None
        if noise_mode == "const":
            return self.noise_const * self.noise_strength
        return seeding.randn([x.shape[0], 1, *image_size(self.resolution)], device=x.device) * self.noise_strength

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, w_dim={self.w_dim}, "
            f"resolution={self.resolution}, up={self.up}, activation={self.activation}"
        )


@persistence.remembers_arguments
class ToRGBLayer(torch.nn.Module):
    """Modulated 1x1 convolution to image channels, without demodulation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 1,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.w_dim = w_dim
        self.conv_clamp = conv_clamp
        self.padding = kernel_size // 2
        self.weight_gain = 1 / float(np.sqrt(in_channels * kernel_size**2))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
        self.weight = torch.nn.Parameter(weight.to(memory_format=memory_format))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))

    def forward(self, x: torch.Tensor, w: torch.Tensor, fused_modconv: bool = True) -> torch.Tensor:
        """`[n, in, h, w]`, `[n, w_dim]` -> `[n, out, h, w]`."""
        x = modulated_conv2d(
            x=x,
            weight=self.weight,
            styles=self.affine(w) * self.weight_gain,
            padding=self.padding,
            demodulate=False,
            fused_modconv=fused_modconv,
        )
        return bias_act.bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


@persistence.remembers_arguments
class SynthesisBlock(MixedPrecision):
    """One resolution of the synthesis: one or two layers, and to image channels where the architecture asks for it.

    architecture: `orig` (image at the end only), `skip` (an image per block, upsampled and summed), `resnet`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: Resolution,
        img_channels: int,
        is_last: bool,
        architecture: str = "skip",
        resample_filter: Sequence[float] = [1, 3, 3, 1],
        conv_clamp: float | None = 256,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        fused_modconv_default: bool | str = True,
        **layer_kwargs: Any,
    ):
        check_architecture(architecture)
        super().__init__()
        self.in_channels = in_channels
        self.w_dim = w_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.is_last = is_last
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.fused_modconv_default = fused_modconv_default
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = int(is_last or architecture == "skip")
        shared = dict(
            w_dim=w_dim, resolution=resolution, conv_clamp=conv_clamp, channels_last=self.channels_last, **layer_kwargs
        )
        if in_channels == 0:
            self.const = torch.nn.Parameter(torch.randn([out_channels, *image_size(resolution)]))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, up=2, resample_filter=resample_filter, **shared)
        self.conv1 = SynthesisLayer(out_channels, out_channels, **shared)
        if self.num_torgb:
            self.torgb = ToRGBLayer(
                out_channels, img_channels, w_dim=w_dim, conv_clamp=conv_clamp, channels_last=self.channels_last
            )
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels,
                out_channels,
                kernel_size=1,
                bias=False,
                up=2,
                resample_filter=resample_filter,
                channels_last=self.channels_last,
            )

    def forward(
        self,
        x: torch.Tensor | None,
        img: torch.Tensor | None,
        ws: torch.Tensor,
        force_fp32: bool = False,
        fused_modconv: bool | None = None,
        update_emas: bool = False,
        **layer_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features and image of the block before, ws `[n, num_conv + num_torgb, w_dim]` -> features, image."""
        misc.assert_shape(ws, [None, self.num_conv + self.num_torgb, self.w_dim])
        w = iter(ws.unbind(dim=1))
        dtype, memory_format = self.precision(force_fp32, ws.device)
        fused = self.is_fused(fused_modconv, ws.device)
        layer_kwargs["fused_modconv"] = fused

        x = self.start(ws.shape[0]) if self.in_channels == 0 else x
        assert x is not None
        x = x.to(dtype=dtype, memory_format=memory_format)
        if self.in_channels == 0:
            x = self.conv1(x, next(w), **layer_kwargs)
        elif self.architecture == "resnet":
            shortcut = self.skip(x, gain=HALF)
            x = self.conv0(x, next(w), **layer_kwargs)
            x = self.conv1(x, next(w), gain=HALF, **layer_kwargs)
            x = shortcut + x
        else:
            x = self.conv0(x, next(w), **layer_kwargs)
            x = self.conv1(x, next(w), **layer_kwargs)

        if img is not None:
            img = upfirdn2d.upsample2d(img, self.resample_filter)
        if self.num_torgb:
            rgb = self.torgb(x, next(w), fused_modconv=fused).to(torch.float32, memory_format=torch.contiguous_format)
            img = rgb if img is None else img + rgb
        return x, img

    def start(self, n: int) -> torch.Tensor:
        return self.const.unsqueeze(0).expand(n, -1, -1, -1)  # [n, out, h, w]

    def is_fused(self, fused_modconv: bool | None, device: torch.device) -> bool:
        """Scaling the weights pays where a GPU would launch more kernels, never on a CPU."""
        choice = self.fused_modconv_default if fused_modconv is None else fused_modconv
        if choice == "inference_only":
            return not self.training and device.type == "cuda"
        return bool(choice)

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.remembers_arguments
class SynthesisNetwork(torch.nn.Module):
    """ws to image: blocks `b4, b8, …` up to the image's resolution."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: Resolution,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 4,
        **block_kwargs: Any,
    ):
        super().__init__()
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.num_fp16_res = num_fp16_res
        self.sizes = resolution_pyramid(img_resolution, is_generated=True)
        self.block_resolutions = [size[0] if size[0] == size[1] else size for size in self.sizes]
        channels = channels_per_level(len(self.sizes), channel_base, channel_max)
        self.num_ws = 0
        for level, resolution in enumerate(self.block_resolutions):
            is_last = level == len(self.sizes) - 1
            block = SynthesisBlock(
                in_channels=channels[level - 1] if level > 0 else 0,
                out_channels=channels[level],
                w_dim=w_dim,
                resolution=resolution,
                img_channels=img_channels,
                is_last=is_last,
                use_fp16=is_half_level(level, len(self.sizes), num_fp16_res),
                **block_kwargs,
            )
            self.num_ws += block.num_conv + (block.num_torgb if is_last else 0)
            setattr(self, block_name(self.sizes[level]), block)

    @property
    def img_resolution_log2(self) -> int:
        """Official name: of 2^n pixels a side, n."""
        return len(self.sizes) + 1

    def forward(self, ws: torch.Tensor, **block_kwargs: Any) -> torch.Tensor:
        """`[n, num_ws, w_dim]` -> images `[n, img_channels, h, w]` float32."""
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        ws = ws.to(torch.float32)
        x: Any = None
        img: Any = None
        first = 0
        for size in self.sizes:
            block = getattr(self, block_name(size))
            x, img = block(x, img, ws[:, first : first + block.num_conv + block.num_torgb], **block_kwargs)
            first += block.num_conv  # the w of to-RGB is also the next block's first
        return img

    def extra_repr(self) -> str:
        return f"img_resolution={self.img_resolution}, img_channels={self.img_channels}, num_ws={self.num_ws}"


@persistence.persistent_class
class Generator(SourceGenerator):
    """StyleGAN2."""

    mapping_network = MappingNetwork
    synthesis_network = SynthesisNetwork


@persistence.remembers_arguments
class DiscriminatorBlock(MixedPrecision):
    """One resolution of the discriminator: image in where the architecture asks for it, two convolutions, half size.

    Layers whose index is below `freeze_layers` are buffers and are not trained.
    """

    def __init__(
        self,
        in_channels: int,
        tmp_channels: int,
        out_channels: int,
        resolution: Resolution,
        img_channels: int,
        first_layer_idx: int,
        architecture: str = "resnet",
        activation: str = "lrelu",
        resample_filter: Sequence[float] = [1, 3, 3, 1],
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        freeze_layers: int = 0,
    ):
        check_architecture(architecture)
        super().__init__()
        self.in_channels = in_channels
        self.resolution = resolution
        self.img_channels = img_channels
        self.first_layer_idx = first_layer_idx
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.num_layers = 0
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))

        def layer(in_channels: int, out_channels: int, **kwargs: Any) -> Conv2dLayer:
            kwargs |= {"channels_last": self.channels_last, "trainable": self.next_layer_idx >= freeze_layers}
            self.num_layers += 1
            return Conv2dLayer(in_channels, out_channels, **kwargs)

        shared = dict(activation=activation, conv_clamp=conv_clamp)
        resample = dict(down=2, resample_filter=resample_filter)
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = layer(img_channels, tmp_channels, kernel_size=1, **shared)
        self.conv0 = layer(tmp_channels, tmp_channels, kernel_size=3, **shared)
        self.conv1 = layer(tmp_channels, out_channels, kernel_size=3, **shared, **resample)
        if architecture == "resnet":
            self.skip = layer(tmp_channels, out_channels, kernel_size=1, bias=False, **resample)

    @property
    def next_layer_idx(self) -> int:
        """Index of the layer behind this block, counted from the image."""
        return self.first_layer_idx + self.num_layers

    def forward(
        self, x: torch.Tensor | None, img: torch.Tensor | None, force_fp32: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features `[n, in, h, w]` and image of this resolution -> features `[n, out, h / 2, w / 2]`, image or None."""
        given = img if x is None else x
        assert given is not None
        dtype, memory_format = self.precision(force_fp32, given.device)
        if x is not None:
            x = x.to(dtype=dtype, memory_format=memory_format)
        if self.in_channels == 0 or self.architecture == "skip":
            assert img is not None
            y = self.fromrgb(img.to(dtype=dtype, memory_format=memory_format))
            x = y if x is None else x + y
            img = upfirdn2d.downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture == "resnet":
            shortcut = self.skip(x, gain=HALF)
            return shortcut + self.conv1(self.conv0(x), gain=HALF), img
        return self.conv1(self.conv0(x)), img

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.remembers_arguments
class DiscriminatorEpilogue(torch.nn.Module):
    """The lowest resolution: minibatch standard deviation, convolution, two linear layers, label projection."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        resolution: Resolution,
        img_channels: int,
        architecture: str = "resnet",
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        activation: str = "lrelu",
        conv_clamp: float | None = None,
    ):
        check_architecture(architecture)
        super().__init__()
        self.in_channels = in_channels
        self.cmap_dim = cmap_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.architecture = architecture
        height, width = image_size(resolution)
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, kernel_size=1, activation=activation)
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels > 0 else None
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels, in_channels, kernel_size=3, activation=activation, conv_clamp=conv_clamp
        )
        self.fc = FullyConnectedLayer(in_channels * height * width, in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim if cmap_dim > 0 else 1)

    def forward(
        self, x: torch.Tensor, img: torch.Tensor | None, cmap: torch.Tensor | None, force_fp32: bool = False
    ) -> torch.Tensor:
        """Features `[n, in, h, w]` (and image, label embedding `[n, cmap_dim]`) -> logits `[n, 1]`."""
        misc.assert_shape(x, [None, self.in_channels, *image_size(self.resolution)])
        x = x.to(dtype=torch.float32, memory_format=torch.contiguous_format)
        if self.architecture == "skip":
            assert img is not None
            x = x + self.fromrgb(img.to(torch.float32))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim > 0:
            assert cmap is not None
            misc.assert_shape(cmap, [None, self.cmap_dim])
            x = (x * cmap).sum(dim=1, keepdim=True) / float(np.sqrt(self.cmap_dim))  # Miyato & Koyama 2018
        return x

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class Discriminator(ImageDiscriminator):
    """`D(img, c) -> logits [n, 1]`."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: Resolution,
        img_channels: int,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 4,
        conv_clamp: float | None = 256,
        cmap_dim: int | None = None,
        block_kwargs: dict[str, Any] = {},
        mapping_kwargs: dict[str, Any] = {},
        epilogue_kwargs: dict[str, Any] = {},
    ):
        super().__init__(c_dim, img_resolution, img_channels)
        self.sizes = resolution_pyramid(img_resolution)
        resolutions = [size[0] if size[0] == size[1] else size for size in self.sizes]
        self.block_resolutions = resolutions[:0:-1]  # from the image down, without the epilogue's
        channels = channels_per_level(len(self.sizes), channel_base, channel_max)
        cmap_dim = (channels[0] if cmap_dim is None else cmap_dim) if c_dim > 0 else 0
        shared = dict(img_channels=img_channels, architecture=architecture, conv_clamp=conv_clamp)
        num_layers = 0
        for level in range(len(self.sizes) - 1, 0, -1):
            block = DiscriminatorBlock(
                in_channels=channels[level] if level < len(self.sizes) - 1 else 0,
                tmp_channels=channels[level],
                out_channels=channels[level - 1],
                resolution=resolutions[level],
                first_layer_idx=num_layers,
                use_fp16=is_half_level(level, len(self.sizes), num_fp16_res),
                **block_kwargs,
                **shared,
            )
            num_layers += block.num_layers
            setattr(self, block_name(self.sizes[level]), block)
        if c_dim > 0:
            self.mapping = MappingNetwork(
                z_dim=0, c_dim=c_dim, w_dim=cmap_dim, num_ws=None, w_avg_beta=None, **mapping_kwargs
            )
        epilogue = DiscriminatorEpilogue(
            channels[0], cmap_dim=cmap_dim, resolution=resolutions[0], **epilogue_kwargs, **shared
        )
        setattr(self, block_name(self.sizes[0]), epilogue)

    @property
    def img_resolution_log2(self) -> int:
        """Official name: of 2^n pixels a side, n."""
        return len(self.sizes) + 1

    def forward(  # type: ignore[override]  # force_fp32 is among the block_kwargs, as in the official code
        self, img: torch.Tensor, c: torch.Tensor | None, update_emas: bool = False, **block_kwargs: Any
    ) -> torch.Tensor:
        """Images `[n, img_channels, h, w]` in [-1, 1], labels `[n, c_dim]` -> logits `[n, 1]` float32."""
        x = None
        for size in self.sizes[:0:-1]:
            x, img = getattr(self, block_name(size))(x, img, **block_kwargs)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return getattr(self, block_name(self.sizes[0]))(x, img, cmap)

    def extra_repr(self) -> str:
        return f"c_dim={self.c_dim}, img_resolution={self.img_resolution}, img_channels={self.img_channels}"


def check_architecture(architecture: str) -> None:
    if architecture not in ("orig", "skip", "resnet"):
        raise ValueError(f"architecture must be orig, skip or resnet, not {architecture!r}")


def channels_per_level(num_levels: int, channel_base: int, channel_max: int) -> list[int]:
    """Feature maps from the smallest resolution up: `channel_base / resolution`, at most `channel_max`."""
    return [min(channel_base // nominal_resolution(level), channel_max) for level in range(num_levels)]


def is_half_level(level: int, num_levels: int, num_fp16_res: int) -> bool:
    """The `num_fp16_res` highest resolutions run in float16 (on a GPU), never the lowest."""
    return level >= max(num_levels - num_fp16_res, 1)
