"""Image to latent: the definitions, the normalisations, the errors."""

import pytest
import torch

from dnnlib.errors import UserError
from training.sources.encoders import ENCODERS, build_encoder, grid_for, whitening_matrix


def images(n=64, channels=3, height=32, width=32):
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(n, channels, 6, 6), size=(height, width), mode="bicubic")
    return (0.4 * smooth + 0.3).clamp(-1, 1)


@pytest.mark.parametrize(("z_dim", "grid"), [(512, (16, 32)), (256, (16, 16)), (64, (8, 8)), (12, (3, 4)), (1, (1, 1))])
def test_grid(z_dim, grid):
    assert grid_for(z_dim) == grid


@pytest.mark.parametrize("z_dim", [509, 2 * 509])
def test_a_z_dim_that_is_no_grid_of_pixels(z_dim):
    with pytest.raises(UserError, match="--z-dim"):
        build_encoder("flatten", z_dim)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_flatten_is_the_papers(channels):
    x = images(channels=channels, height=48, width=64)
    z = build_encoder("flatten", 512, norm="none")(x)
    gray = x.mean(dim=1, keepdim=True)
    expected = torch.nn.functional.interpolate(gray, size=(16, 32), mode="bilinear", antialias=True).reshape(
        len(x), 512
    )
    assert torch.equal(z, expected)
    assert list(build_encoder("flatten", 512, norm="none").state_dict()) == []


def test_flatten_keeps_an_image_of_the_grids_size_row_by_row():
    x = torch.arange(2 * 512, dtype=torch.float32).reshape(2, 1, 16, 32)
    assert torch.equal(build_encoder("flatten", 512, norm="none")(x), x.reshape(2, 512))


def test_flatten_crop_is_the_authors():
    x = torch.arange(23 * 23, dtype=torch.float32).reshape(1, 1, 23, 23)
    assert torch.equal(build_encoder("flatten-crop", 512, norm="none")(x), x.reshape(1, -1)[:, :512])
    assert build_encoder("flatten-crop", 509, norm="none")(images()).shape == (64, 509)
    assert build_encoder("flatten-crop", 16, norm="none")(x).shape == (1, 16)


@pytest.mark.parametrize("kind", ["flatten", "flatten-crop", "conv"])
def test_standardize_centres_and_scales_every_dimension(kind):
    encoder = build_encoder(kind, 64)
    encoder.fit([images()[:40], images()[40:]])
    z = encoder(images()).detach()
    assert z.mean(dim=0).abs().max() < 1e-4
    assert torch.allclose(z.std(dim=0), torch.ones(64), atol=1e-3)


def test_whiten_decorrelates():
    x = images(n=4000)
    encoder = build_encoder("flatten", 16, norm="whiten")
    encoder.fit([x])
    z = encoder(x)
    covariance = z.t() @ z / len(z)
    assert (covariance - torch.eye(16)).abs().max() < 0.1
    assert z.mean(dim=0).abs().max() < 1e-3


def test_whitening_does_not_blow_up_what_the_source_does_not_use():
    """Fewer samples than dimensions: the unused directions get the mean eigenvalue's share, not a division by zero."""
    torch.manual_seed(0)
    z = torch.randn(20, 64, dtype=torch.float64)
    w = whitening_matrix(z)
    assert torch.isfinite(w).all()
    assert torch.linalg.matrix_norm(w, 2) < 50
    assert torch.allclose(w, w.t())


def test_a_constant_dimension_stays_zero():
    x = images()
    x[:, :, :16, :] = -1  # the upper half of every image is black
    encoder = build_encoder("flatten", 64)
    encoder.fit([x])
    z = encoder(x)
    assert torch.isfinite(z).all()
    assert z.abs().max() < 20
    assert z[:, :16].abs().max() < 1e-3


@pytest.mark.parametrize("kind", [*ENCODERS])
def test_two_dimensions_are_always_z(kind):
    z = torch.randn(3, 64)
    assert torch.equal(build_encoder(kind, 64, **({} if kind == "identity" else {"norm": "none"}))(z), z)
    with pytest.raises(ValueError, match="64 columns"):
        build_encoder(kind, 64)(torch.randn(3, 63))


def test_a_batch_of_one_keeps_its_shape():
    assert build_encoder("flatten", 512, norm="none")(images(n=1)).shape == (1, 512)


def test_conv_is_trainable_and_checks_its_channels():
    encoder = build_encoder("conv", 32, norm="none", img_channels=4)
    encoder(images(channels=4)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    with pytest.raises(ValueError, match="4 channels"):
        encoder(images(channels=3))


def test_noise_takes_no_images():
    with pytest.raises(ValueError, match="takes z"):
        build_encoder("identity", 8)(images())


@pytest.mark.parametrize("kwargs", [{"kind": "flat"}, {"kind": "flatten", "norm": "zca"}])
def test_unknown_names_list_the_choices(kwargs):
    with pytest.raises(UserError, match="choose from"):
        build_encoder(z_dim=64, **kwargs)


def test_one_image_has_no_statistics():
    with pytest.raises(UserError, match="two source images"):
        build_encoder("flatten", 64).fit([images(n=1)])
