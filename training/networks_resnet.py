"""Residual networks: SNGAN (Miyato 2018, "Spectral Normalization for GANs") and BigGAN (Brock 2019, "Large Scale GAN
Training for High Fidelity Natural Image Synthesis"), which are one family and differ by their arguments.

SNGAN: spectral norm in D, G conditioned by batch norm with a gain and a bias per class, labels projected in D (Miyato &
Koyama 2018). BigGAN: spectral norm in both, self-attention (Zhang 2019) at half the image's side, orthogonal weights, z
in pieces: the first feeds the 4x4 maps, each block's batch norms get one of the others with the embedded label behind it.
Layers: Miyato 2018, tables 4 and 6; Brock 2019, table 4. Feature maps are `channel_base / side`, at most `channel_max`.
"""

import torch
from torch.nn.functional import avg_pool2d, interpolate, relu

from torch_utils import persistence
from training.conv_generator import ConvGenerator, ConvSynthesis
from training.discriminator import ImageDiscriminator
from training.layers.batch_norm import BatchNorm
from training.layers.pyramid import channels_at
from training.layers.spectral import SpectralLinear, SpectralNorm, advance_spectral_norms, conv, linear

START = 4  # side of G's first feature maps
SMALL = 32  # up to this side D is Miyato's table 4: two blocks that halve, two that do not
FIRST_ITERATIONS = 15  # of the power method, on the initial weights
INITS = ("xavier", "orthogonal")


class ConditionalNorm(torch.nn.Module):
    """Batch norm; with a condition `[n, cond_dim]`, its gain (around 1) and bias are linear in that."""

    def __init__(self, num_channels: int, cond_dim: int, is_spectral: bool):
        super().__init__()
        self.norm = BatchNorm(num_channels, is_affine=cond_dim == 0)
        self.gain = linear(is_spectral, cond_dim, num_channels, bias=False) if cond_dim > 0 else None
        self.bias = linear(is_spectral, cond_dim, num_channels, bias=False) if cond_dim > 0 else None

    def forward(self, x: torch.Tensor, cond: torch.Tensor, update_emas: bool) -> torch.Tensor:
        if self.gain is None or self.bias is None:
            return self.norm(x, update_emas)
        return self.norm(x, update_emas, self.gain(cond), self.bias(cond))


class SynthesisBlock(torch.nn.Module):
    """Twice the side: norm, ReLU, up, 3x3, norm, ReLU, 3x3; around it up, 1x1."""

    def __init__(self, in_channels: int, out_channels: int, cond_dim: int, is_spectral: bool):
        super().__init__()
        self.norm0 = ConditionalNorm(in_channels, cond_dim, is_spectral)
        self.conv0 = conv(is_spectral, in_channels, out_channels, kernel_size=3)
        self.norm1 = ConditionalNorm(out_channels, cond_dim, is_spectral)
        self.conv1 = conv(is_spectral, out_channels, out_channels, kernel_size=3)
        self.skip = conv(is_spectral, in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor, cond: torch.Tensor, update_emas: bool) -> torch.Tensor:
        """`[n, in, h, w]`, `[n, cond_dim]` -> `[n, out, 2h, 2w]`."""
        y = self.conv0(interpolate(relu(self.norm0(x, cond, update_emas)), scale_factor=2))
        y = self.conv1(relu(self.norm1(y, cond, update_emas)))
        return y + interpolate(self.skip(x), scale_factor=2)  # a 1x1 convolution commutes with repeating pixels


class SelfAttention(torch.nn.Module):
    """Every position takes from all others (Zhang 2019, sec. 3), keys and values at half the side (Brock 2019, app. B)."""

    def __init__(self, num_channels: int):
        super().__init__()
        narrow, wide = max(num_channels // 8, 1), max(num_channels // 2, 1)
        self.query = conv(True, num_channels, narrow, kernel_size=1, bias=False)
        self.key = conv(True, num_channels, narrow, kernel_size=1, bias=False)
        self.value = conv(True, num_channels, wide, kernel_size=1, bias=False)
        self.out = conv(True, wide, num_channels, kernel_size=1, bias=False)
        self.strength = torch.nn.Parameter(torch.zeros([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, C, h, w]` -> the same."""
        pool = torch.nn.functional.max_pool2d
        query = self.query(x).flatten(2)  # [n, C / 8, hw]
        key = pool(self.key(x), 2).flatten(2)  # [n, C / 8, hw / 4]
        value = pool(self.value(x), 2).flatten(2)  # [n, C / 2, hw / 4]
        weights = (query.transpose(1, 2) @ key).softmax(dim=2)  # [n, hw, hw / 4]
        taken = (value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])  # [n, C / 2, h, w]
        return x + self.strength * self.out(taken)


class SynthesisNetwork(ConvSynthesis):
    """w to image: 4x4 maps, residual blocks that double the side, batch norm, ReLU, 3x3, tanh.

    is_hierarchical: z is divided among the 4x4 maps and the blocks, one w for each; otherwise the one w is z for the 4x4
    maps and label for the norms.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        channel_base: int = 8192,
        channel_max: int = 256,
        is_spectral: bool = False,
        is_hierarchical: bool = False,
        has_attention: bool = False,
        init: str = "xavier",
    ):
        super().__init__()
        sides = [2 * START << level for level in range((img_resolution // START).bit_length() - 1)]
        channels = [channels_at(side, channel_base, channel_max) for side in sides]
        self.z_dim = w_dim - label_dim
        self.num_ws = len(sides) + 1 if is_hierarchical else 1
        self.pieces = [len(piece) for piece in range_split(self.z_dim, self.num_ws)]  # of z
        conds = [piece + label_dim for piece in self.pieces[1:]] if is_hierarchical else [label_dim] * len(sides)
        self.start = linear(is_spectral, self.pieces[0], channels[0] * START**2)
        starts = [channels[0], *channels[:-1]]
        self.blocks = torch.nn.ModuleList(
            SynthesisBlock(start, end, cond, is_spectral)
            for start, end, cond in zip(starts, channels, conds, strict=True)
        )
        self.attention = SelfAttention(channels[-2]) if has_attention else None
        self.norm = BatchNorm(channels[-1])
        self.to_image = conv(is_spectral, channels[-1], img_channels, kernel_size=3)
        initialize(self, init)

    def images(self, ws: torch.Tensor, update_emas: bool) -> torch.Tensor:
        if update_emas:
            advance_spectral_norms(self)
        first, *conds = self.inputs(ws)
        x = self.start(first).unflatten(1, (-1, START, START))
        for index, block in enumerate(self.blocks):
            if index == len(self.blocks) - 1 and self.attention is not None:
                x = self.attention(x)
            x = block(x, conds[index], update_emas)
        return self.to_image(relu(self.norm(x, update_emas))).tanh()

    def inputs(self, ws: torch.Tensor) -> list[torch.Tensor]:
        """What the 4x4 maps are made from, and the condition of each block; piece i of z is taken from w number i."""
        zs, labels = ws[:, :, : self.z_dim], ws[:, :, self.z_dim :]
        pieces = [zs[:, index].split(self.pieces, dim=1)[index] for index in range(self.num_ws)]
        if self.num_ws == 1:
            return [pieces[0], *[labels[:, 0]] * len(self.blocks)]
        conds = [torch.cat([piece, labels[:, index]], dim=1) for index, piece in enumerate(pieces)]
        return [pieces[0], *conds[1:]]


@persistence.persistent_class
class Generator(ConvGenerator):
    """SNGAN, or BigGAN by its arguments."""

    synthesis_network = SynthesisNetwork


class DiscriminatorBlock(torch.nn.Module):
    """ReLU, 3x3, ReLU, 3x3, half the side where asked for; around it 1x1 where sizes differ.

    is_first: the input is an image, which no ReLU may cut. is_wide: the first convolution changes the number of feature
    maps (Brock 2019, app. B), not the second (Miyato 2018).
    """

    def __init__(self, in_channels: int, out_channels: int, is_down: bool, is_first: bool, is_wide: bool):
        super().__init__()
        self.is_down = is_down
        self.is_first = is_first
        hidden = out_channels if is_wide or is_first else in_channels
        self.conv0 = conv(True, in_channels, hidden, kernel_size=3)
        self.conv1 = conv(True, hidden, out_channels, kernel_size=3)
        has_skip = is_down or in_channels != out_channels
        self.skip = conv(True, in_channels, out_channels, kernel_size=1) if has_skip else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, in, h, w]` -> `[n, out, h, w]`, or half of it."""
        y = self.conv1(relu(self.conv0(x if self.is_first else relu(x))))
        x = x if self.skip is None else self.skip(x)
        return avg_pool2d(x + y, 2) if self.is_down else x + y  # averaging commutes with the 1x1 convolution


@persistence.persistent_class
class Discriminator(ImageDiscriminator):
    """`D(img, c) -> logits [n, 1]`: residual blocks, ReLU, sum over positions, linear, label projection."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 8192,
        channel_max: int = 256,
        is_wide: bool = False,
        has_attention: bool = False,
        init: str = "xavier",
    ):
        super().__init__(c_dim, img_resolution, img_channels)
        layout = block_layout(img_resolution, channel_base, channel_max)
        self.blocks = torch.nn.ModuleList()
        in_channels = img_channels
        for index, (out_channels, is_down) in enumerate(layout):
            self.blocks.append(DiscriminatorBlock(in_channels, out_channels, is_down, index == 0, is_wide))
            in_channels = out_channels
        self.attention = SelfAttention(layout[0][0]) if has_attention else None
        self.out = SpectralLinear(in_channels, 1)
        self.embed = SpectralLinear(c_dim, in_channels, bias=False) if c_dim > 0 else None
        initialize(self, init)

    def logits(self, img: torch.Tensor, c: torch.Tensor | None, update_emas: bool) -> torch.Tensor:
        if update_emas:
            advance_spectral_norms(self)
        x = img
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 0 and self.attention is not None:
                x = self.attention(x)
        h = relu(x).sum(dim=[2, 3])  # [n, features]
        logits = self.out(h)
        if self.embed is None:
            return logits
        assert c is not None
        return logits + (self.embed(c.to(torch.float32)) * h).sum(dim=1, keepdim=True)


def block_layout(img_resolution: int, channel_base: int, channel_max: int) -> list[tuple[int, bool]]:
    """(feature maps, whether it halves the side) of D's blocks. Small images: half of G's feature maps, in all blocks."""
    if img_resolution <= SMALL:
        return [(max(channel_max // 2, 1), is_down) for is_down in (True, True, False, False)]
    sides = [img_resolution >> level for level in range((img_resolution // START).bit_length() - 1)]
    halving = [(channels_at(side, channel_base, channel_max), True) for side in sides]
    return [*halving, (halving[-1][0], False)]


def range_split(length: int, num_pieces: int) -> list[range]:
    """A range in pieces that differ by one at most."""
    ends = [length * piece // num_pieces for piece in range(num_pieces + 1)]
    return [range(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]


def initialize(network: torch.nn.Module, init: str) -> None:
    """Weights: `orthogonal` (Saxe 2014; Brock 2019), or `xavier`, as uniform numbers (Glorot & Bengio 2010), with the gain
    of ReLUs for 3x3 convolutions. Per-class gains and biases of SNGAN's norms start at 1 and 0."""
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    for module in network.modules():
        if isinstance(module, SpectralNorm | torch.nn.Linear | torch.nn.Conv2d):
            if init == "orthogonal":
                torch.nn.init.orthogonal_(module.weight)
            else:
                is_3x3 = module.weight.ndim == 4 and module.weight.shape[2] == 3
                torch.nn.init.xavier_uniform_(module.weight, gain=2**0.5 if is_3x3 else 1.0)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ConditionalNorm):
            for part in (module.gain, module.bias):
                if isinstance(part, torch.nn.Linear):
                    torch.nn.init.zeros_(part.weight)
    advance_spectral_norms(network, FIRST_ITERATIONS)
