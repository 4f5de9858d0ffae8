"""The convolutional networks: sizes as the papers' tables say, norms that move only when told, spectral norm."""

import importlib
import itertools

import pytest
import torch

from training import networks_pggan, networks_resnet
from training.config.presets import PRESETS
from training.layers import batch_norm, spectral


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def networks(cfg, c_dim, side, cmax=None):
    """G and D as the configuration builds them, without memory."""
    preset = PRESETS[cfg]
    widths = {"channel_base": preset.cbase, "channel_max": cmax or preset.cmax}
    module = importlib.import_module(preset.generator.rpartition(".")[0])
    with torch.device("meta"):
        G = module.Generator(preset.z_dim, c_dim, side, 3, **widths, **preset.generator_kwargs)
        return G, module.Discriminator(c_dim, side, 3, **widths, **preset.discriminator_kwargs)


def test_dcgan_is_figure_1_of_radford_2016():
    """z of 100, projected to 1024 maps of 4x4, then 512, 256, 128 and 3, by strided 5x5 convolutions."""
    G, D = networks("dcgan", 0, 64)
    assert G.synthesis.project.weight.shape == (1024 * 4 * 4, 100)
    ends = [1024, 512, 256, 128, 3]
    assert [conv.weight.shape for conv in G.synthesis.convs] == [(a, b, 5, 5) for a, b in itertools.pairwise(ends)]
    assert [len(norm.weight) for norm in G.synthesis.norms] == ends[:-1]
    convs = 25 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 3
    assert num_parameters(G) == 100 * 16384 + convs + 2 * (1024 + 512 + 256 + 128)
    assert [conv.weight.shape[0] for conv in D.convs] == ends[-2::-1]


def test_sngan_is_tables_4_and_6_of_miyato_2018():
    """32x32: 256 maps in G, 128 in D, of which two blocks halve. 128x128: 1024 to 64, and back."""
    G, D = networks("sngan", 0, 32)
    assert G.synthesis.start.weight.shape == (4 * 4 * 256, 128)
    assert [block.conv1.weight.shape for block in G.synthesis.blocks] == [(256, 256, 3, 3)] * 3
    assert [block.conv1.weight.shape for block in D.blocks] == [(128, 128, 3, 3)] * 4
    assert [block.is_down for block in D.blocks] == [True, True, False, False]
    G, D = networks("sngan", 1000, 128, cmax=1024)
    assert G.synthesis.start.weight.shape == (4 * 4 * 1024, 128)
    assert [len(block.conv1.weight) for block in G.synthesis.blocks] == [1024, 512, 256, 128, 64]
    assert [len(block.conv1.weight) for block in D.blocks] == [64, 128, 256, 512, 1024, 1024]
    assert D.embed.weight.shape == (1024, 1000)


def test_biggan_is_tables_1_and_4_of_brock_2019():
    """ch = 96 at 128x128: z of 120 in six pieces, 16ch to ch, attention at 64x64; 158.3 million parameters in all."""
    G, D = networks("biggan", 1000, 128)
    assert G.synthesis.start.weight.shape == (4 * 4 * 16 * 96, 20)
    assert [len(block.conv1.weight) // 96 for block in G.synthesis.blocks] == [16, 8, 4, 2, 1]
    assert [len(block.conv1.weight) // 96 for block in D.blocks] == [1, 2, 4, 8, 16, 16]
    assert all(block.norm0.gain.weight.shape[1] == 20 + 128 for block in G.synthesis.blocks)
    assert G.synthesis.attention.query.weight.shape[1] == 2 * 96 and D.attention.query.weight.shape[1] == 96
    assert (num_parameters(G) + num_parameters(D)) / 1e6 == pytest.approx(158.3, abs=0.2)


def test_r3gan_is_configuration_e_of_huang_2024():
    """FFHQ at 256x256: 768 maps up to 32x32, then 384, 192, 96; 23.058 million parameters in G and 23.010 in D."""
    G, D = networks("r3gan", 0, 256)
    assert [stage.blocks[0].reduce.weight.shape[0] for stage in G.synthesis.stages] == [768] * 4 + [384, 192, 96]
    assert G.synthesis.stages[0].blocks[0].mix.weight.shape == (1536, 16, 3, 3)
    assert round(num_parameters(G) / 1e6, 3) == 23.058 and round(num_parameters(D) / 1e6, 3) == 23.010


def test_pggan_is_table_2_of_karras_2018():
    """1024x1024: 512 maps up to 32x32, then 256 to 16; 23.1 million parameters in each network."""
    G, D = networks("pggan", 0, 1024)
    assert [block[1].weight.shape[0] for block in G.synthesis.blocks] == [512, 512, 512, 256, 128, 64, 32, 16]
    assert [block[0].weight.shape[1] for block in D.blocks] == [512, 512, 512, 256, 128, 64, 32, 16]
    assert D.epilogue.conv.weight.shape == (512, 513, 3, 3)
    assert num_parameters(G) / 1e6 == pytest.approx(23.1, abs=0.06)
    assert num_parameters(D) / 1e6 == pytest.approx(23.1, abs=0.06)


@pytest.mark.parametrize(
    ("nimg", "position"), [(0, 0), (10, 0), (15, 0.5), (20, 1), (30, 1), (32.5, 1.25), (40, 2), (60, 2), (1e15, 2)]
)
def test_pggan_grows_with_the_images_seen(nimg, position):
    torch.manual_seed(0)
    G = networks_pggan.Generator(16, 0, 16, 3, channel_base=128, channel_max=16, grow_kimg=0.01)
    D = networks_pggan.Discriminator(0, 16, 3, channel_base=128, channel_max=16, grow_kimg=0.01)
    for network in (G, D):
        network.set_progress(nimg)
        assert network.state_dict()[next(n for n in network.state_dict() if n.endswith("position"))] == position
    images = G(torch.randn(2, 16), None)
    assert images.shape == (2, 3, 16, 16)
    side = 4 << (0 if position == 0 else 1 if position <= 1 else 2)
    assert torch.allclose(D.growth.enlarge(D.growth.reduce(images, D.growth.stage()[0]), D.growth.stage()[0]), images)
    assert torch.equal(
        images[:, :, :: 16 // side, :: 16 // side], images[:, :, 16 // side - 1 :: 16 // side, :: 16 // side]
    )
    assert torch.allclose(
        D(images, None), D(D.growth.enlarge(D.growth.reduce(images, D.growth.stage()[0]), D.growth.stage()[0]), None)
    )


def test_pggan_changes_continuously():
    """Fading begins with the images and logits of the stage before, and ends with those of the next."""
    torch.manual_seed(0)
    G = networks_pggan.Generator(16, 0, 16, 3, channel_base=128, channel_max=16, grow_kimg=0.01)
    D = networks_pggan.Discriminator(0, 16, 3, channel_base=128, channel_max=16, grow_kimg=0.01)
    z, reals = torch.randn(2, 16), torch.randn(2, 3, 16, 16)

    def outputs(nimg):
        for network in (G, D):
            network.set_progress(nimg)
        seen = D.preprocess_real(reals)
        return [G(z, None).detach(), seen, D(seen, None).detach()]

    for before, after in ((10, 10.0001), (20, 20.0001), (30, 30.0001)):
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(outputs(before), outputs(after), strict=True))


def test_r3gan_starts_without_its_residual_branches():
    G, _ = small_networks("r3gan")
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(G.synthesis.stages[0](x), x)


def small_networks(cfg):
    preset = PRESETS[cfg]
    module = importlib.import_module(preset.generator.rpartition(".")[0])
    widths = {"channel_base": 128, "channel_max": 16}
    torch.manual_seed(0)
    G = module.Generator(16, 2, 16, 3, **widths, **preset.generator_kwargs)
    return G, module.Discriminator(2, 16, 3, **widths, **preset.discriminator_kwargs)


@pytest.mark.parametrize("cfg", ["dcgan", "sngan", "biggan"])
def test_buffers_move_only_where_training_says_so(cfg):
    G, D = small_networks(cfg)
    z, c = torch.randn(4, 16), torch.eye(2).repeat(2, 1)
    for network, inputs in ((G, (z, c)), (D, (torch.randn(4, 3, 16, 16), c))):
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        network(*inputs)
        network.eval()(*inputs)
        assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
        network.train()(*inputs, update_emas=True)
        moved = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
        assert moved >= {name for name in before if name.endswith("_ema")}
        assert any(name.endswith(".u") for name in moved) or not any(name.endswith(".u") for name in before)


def test_batch_norm_is_torchs():
    ours, theirs = batch_norm.BatchNorm(5), torch.nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(6, 5, 3, 2) * 2 + 1
        assert torch.allclose(ours(x, update_emas=True), theirs(x), atol=1e-6)
    assert torch.allclose(ours.mean_ema, theirs.running_mean) and torch.allclose(ours.var_ema, theirs.running_var)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)
    gain, bias = torch.randn(6, 5), torch.randn(6, 5)
    expected = theirs(x) * (1 + gain)[:, :, None, None] + bias[:, :, None, None]
    assert torch.allclose(ours(x, gain=gain, bias=bias), expected, atol=1e-5)


@pytest.mark.parametrize("layer", [spectral.SpectralLinear(12, 7), spectral.SpectralConv2d(4, 7, 3)])
def test_spectral_norm_divides_by_the_largest_singular_value(layer):
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.weight)
    spectral.advance_spectral_norms(layer, 200)
    weight = layer.normalized_weight()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-4)
    # Miyato 2018, eq. 12: the gradient does not try to scale the weight.
    (weight * torch.randn_like(weight)).sum().backward()
    assert (layer.weight.grad * layer.weight.detach()).sum().item() == pytest.approx(0, abs=1e-4)


def test_pieces_of_z_belong_to_blocks():
    G, _ = small_networks("biggan")
    G.eval()
    ws = G.mapping(torch.randn(1, 16), torch.eye(2)[:1])
    assert sum(G.synthesis.pieces) == 16 and G.num_ws == len(G.synthesis.pieces) == 3
    moved = ws.clone()
    moved[:, 0, G.synthesis.pieces[0] : 16] += 1  # what the first w has for the blocks
    assert torch.equal(G.synthesis(ws), G.synthesis(moved))
    moved[:, 1, G.synthesis.pieces[0]] += 1
    assert not torch.equal(G.synthesis(ws), G.synthesis(moved))


def test_truncation_leaves_the_label_alone():
    G, _ = small_networks("sngan")
    G.mapping.w_avg.normal_()
    c = torch.eye(2)
    ws = G.mapping(torch.randn(2, 16), c, truncation_psi=0)
    assert torch.allclose(ws[:, 0, :16], G.mapping.w_avg[:16].expand(2, -1))
    assert torch.equal(ws[:, 0, 16:], c)


def test_attention_starts_as_the_identity():
    attention = networks_resnet.SelfAttention(16)
    networks_resnet.initialize(attention, "orthogonal")
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(attention(x), x)
    torch.nn.init.ones_(attention.strength)
    y = attention(x)
    assert torch.allclose(attention(x.flip(3)), y.flip(3), atol=1e-5)  # positions are a set, up to the pooling
