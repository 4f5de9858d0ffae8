"""What the golden files do not cover: rectangles, refused sizes, source images as input, translation."""

import io
import warnings

import pytest
import torch

from dnnlib.errors import UserError
from tests.helpers.golden import relative_error
from torch_utils.ops import dispatch
from training import networks_stylegan2, networks_stylegan3
from training.layers.pyramid import resolution_pyramid

SMALL = dict(z_dim=16, w_dim=16, channel_base=128, channel_max=16)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (8, [(4, 4), (8, 8)]),
        (256, [(4 << k, 4 << k) for k in range(7)]),
        ([32, 48], [(4, 6), (8, 12), (16, 24), (32, 48)]),
        (48, [(6, 6), (12, 12), (24, 24), (48, 48)]),
        ([768, 1280], [(6 << k, 10 << k) for k in range(8)]),
    ],
)
def test_pyramid(size, expected):
    assert resolution_pyramid(size) == expected


@pytest.mark.parametrize(
    ("size", "shown"), [(4, "4x4"), (33, "33x33"), ([32, 512], "512x32"), ([720, 1280], "1280x720")]
)
def test_sizes_that_the_networks_cannot_do(size, shown):
    with pytest.raises(UserError, match=shown):
        resolution_pyramid(size)


@pytest.mark.parametrize("size", [2, [4, 20], [5, 32], [3, 4]])
def test_sizes_that_one_block_cannot_do(size):
    with pytest.raises(UserError, match="do not suit"):
        resolution_pyramid(size, is_generated=True)


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize("size", [4, [4, 8], [16, 4], [8, 32]])
def test_stylegan2_generators_of_one_small_block(architecture, size):
    """4x4 was refused. The official discriminator of 4x4 has no layer that sees the image, so that training refuses it."""
    G = networks_stylegan2.Generator(
        **SMALL,
        c_dim=0,
        img_resolution=size,
        img_channels=3,
        architecture=architecture,
        mapping_kwargs={"num_layers": 8},
    )
    height, width = size if isinstance(size, list) else (size, size)
    images = G(torch.randn(2, 16), None)
    assert images.shape == (2, 3, height, width)
    images.sum().backward()
    if size == 4:
        official = "const conv1.affine.bias conv1.affine.weight conv1.bias conv1.noise_const conv1.noise_strength \
            conv1.resample_filter conv1.weight resample_filter torgb.affine.bias torgb.affine.weight torgb.bias torgb.weight"
        assert sorted(G.synthesis.state_dict()) == [f"b4.{key}" for key in official.split()]
        assert len(G.state_dict()) == 30
        assert G.num_ws == 2
        with pytest.raises(UserError, match="4x4"):
            networks_stylegan2.Discriminator(0, size, 3, architecture=architecture)


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize("size", [[16, 24], [24, 16], 24])
def test_stylegan2_makes_and_judges_rectangles(architecture, size):
    height, width = size if isinstance(size, list) else (size, size)
    G = networks_stylegan2.Generator(**SMALL, c_dim=2, img_resolution=size, img_channels=4, architecture=architecture)
    D = networks_stylegan2.Discriminator(2, size, 4, channel_base=128, channel_max=16, architecture=architecture)
    c = torch.eye(2).repeat(2, 1)
    images = G(torch.randn(4, 16), c)
    assert images.shape == (4, 4, height, width)
    logits = D(images, c)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    assert all(p.grad is not None for p in G.synthesis.parameters() if p.ndim > 0)


@pytest.mark.parametrize("module", [networks_stylegan2, networks_stylegan3])
def test_source_images_and_their_latents_make_the_same_image(module):
    G = module.Generator(
        **SMALL, c_dim=0, img_resolution=16, img_channels=3, mapping_kwargs={"encoder": {"kind": "flatten"}}
    ).eval()
    x = torch.rand(3, 4, 20, 30) * 2 - 1
    z = G.mapping.encoder(x)
    assert torch.equal(G(x, None, noise_mode="const"), G(z, None, noise_mode="const"))
    assert torch.equal(G.mapping(x, None), G.mapping(z, None))
    assert "mapping.encoder.mean" in G.state_dict()


def test_a_generator_of_noise_refuses_images():
    G = networks_stylegan2.Generator(**SMALL, c_dim=0, img_resolution=16, img_channels=3)
    with pytest.raises(ValueError, match="takes z"):
        G(torch.zeros(1, 3, 16, 16), None)


@pytest.mark.parametrize("resolution", [8, 24, 100, [16, 32]])
def test_stylegan3_makes_squares_of_powers_of_two(resolution):
    with pytest.raises(UserError, match="power of two"):
        networks_stylegan3.Generator(**SMALL, c_dim=0, img_resolution=resolution, img_channels=3)


def test_stylegan3_is_equivariant_to_translation():
    """Shifting the input by whole pixels shifts the image: nothing in between knows where it is."""
    torch.manual_seed(0)
    G = networks_stylegan3.Generator(**SMALL, c_dim=0, img_resolution=32, img_channels=3, num_layers=6).eval()
    z = torch.randn(2, 16)
    image = G(z, None)
    G.synthesis.input.transform[0, 2] = 4 / 32
    moved = G(z, None)
    inner = slice(6, 26)
    assert relative_error(moved[:, :, inner, 6:22], image[:, :, inner, 10:26]) < 0.03
    assert relative_error(moved[:, :, inner, 6:22], image[:, :, inner, 6:22]) > 0.2


def test_frozen_layers_are_no_parameters():
    free, frozen = (
        networks_stylegan2.Discriminator(0, 16, 3, channel_base=128, channel_max=16, block_kwargs={"freeze_layers": n})
        for n in (0, 2)
    )
    names = {name for name, _ in free.named_parameters()} - {name for name, _ in frozen.named_parameters()}
    assert names == {f"b16.{layer}.{kind}" for layer in ("fromrgb", "conv0") for kind in ("weight", "bias")}
    assert set(free.state_dict()) == set(frozen.state_dict())


@pytest.mark.parametrize("noise_mode", ["always", ""])
def test_unknown_noise_mode(noise_mode):
    G = networks_stylegan2.Generator(**SMALL, c_dim=0, img_resolution=16, img_channels=3)
    with pytest.raises(ValueError, match="noise_mode"):
        G(torch.zeros(1, 16), None, noise_mode=noise_mode)


LAYERS = (
    networks_stylegan2.FullyConnectedLayer,
    networks_stylegan2.Conv2dLayer,
    networks_stylegan2.SynthesisLayer,
    networks_stylegan2.ToRGBLayer,
    networks_stylegan2.MinibatchStdLayer,
    networks_stylegan3.FullyConnectedLayer,
    networks_stylegan3.SynthesisInput,
    networks_stylegan3.SynthesisLayer,
)


@pytest.mark.parametrize("impl", dispatch.IMPLS)
@pytest.mark.parametrize("name", ["stylegan2 orig", "stylegan2 skip", "stylegan2 resnet", "stylegan3"])
def test_outputs_of_layers_may_be_changed_in_place(name, impl):
    """`self.skip(x).add_(y)`, as other people's blocks have it, ended the backward pass with a RuntimeError."""
    torch.manual_seed(0)
    shape = dict(c_dim=0, img_resolution=16, img_channels=3)
    if name == "stylegan3":
        G, D = networks_stylegan3.Generator(**SMALL, **shape), None
    else:
        size = dict(channel_base=128, channel_max=16, architecture=name.split()[1])
        G = networks_stylegan2.Generator(**SMALL, **shape, architecture=name.split()[1])
        D = networks_stylegan2.Discriminator(**shape, **size)
    networks = torch.nn.ModuleList([G] if D is None else [G, D])
    z = torch.randn(4, 16)

    def gradients(hook):
        handles = [layer.register_forward_hook(hook) for layer in networks.modules() if isinstance(layer, LAYERS)]
        assert len(handles) > 20
        with dispatch.forced(impl):
            images = G(z, None, noise_mode="const")
            scores = images if D is None else D(images, None)
            first = torch.autograd.grad(scores.square().mean(), images, create_graph=True)
            second = torch.autograd.grad(scores.square().mean() + first[0].square().sum(), list(networks.parameters()))
        for handle in handles:
            handle.remove()
        return [*first, *second]

    changed = gradients(lambda module, args, y: y.mul_(1.1).add_(0.1))
    for actual, expected in zip(changed, gradients(lambda module, args, y: y * 1.1 + 0.1), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_traced_generator_is_the_generator():
    """`torch.jit.trace` failed ("padding is (tensor(3), …)"); what it records holds for other z and batch sizes."""
    torch.manual_seed(0)
    G = networks_stylegan2.Generator(
        z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3, channel_base=64, channel_max=8
    )
    G = G.eval().requires_grad_(False)

    def make(z):
        return G(z, torch.zeros([len(z), 0]), noise_mode="const")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces its successor, and that checks of shapes are not recorded
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(make, torch.randn(2, 8)), file)
        file.seek(0)
        traced = torch.jit.load(file)
    z = torch.randn(3, 8)
    torch.testing.assert_close(traced(z), make(z), rtol=0, atol=1e-5)
