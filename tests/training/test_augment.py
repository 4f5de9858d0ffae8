"""The augmentation pipeline: golden numbers, what it must leave alone, and the distributions that it draws from."""

import math

import pytest
import torch

from tests.helpers.golden import golden_cases, relative_error
from torch_utils import seeding
from training import augment
from training.augment import AUGPIPES, AugmentPipe


def pipe_of(name_or_kwargs, p=1.0):
    kwargs = AUGPIPES[name_or_kwargs] if isinstance(name_or_kwargs, str) else name_or_kwargs
    pipe = AugmentPipe(**kwargs)
    pipe.p.copy_(torch.tensor(p))
    return pipe


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


# Golden numbers.


@pytest.mark.parametrize("case", golden_cases("augment", "augment"))
def test_golden(case):
    tensors, expected = case.inputs(), case.outputs()
    images = tensors["images"].requires_grad_()
    y = pipe_of(case.args["kwargs"], case.args["p"])(images, debug_percentile=case.args["debug_percentile"])
    assert relative_error(y, expected["y"]) < 1e-5
    # Nothing happens to grey images under hue and saturation: y is images.
    (grad,) = torch.autograd.grad((y * tensors["dy"]).sum(), images)
    assert relative_error(grad, expected["dimages"]) < 1e-4


@pytest.mark.parametrize("case", golden_cases("augment", "augment_buffers"))
def test_golden_buffers(case):
    pipe, expected = AugmentPipe(), case.outputs()
    assert dict(pipe.named_buffers()).keys() == expected.keys()
    for name, value in expected.items():
        assert relative_error(getattr(pipe, name), value) < 1e-6


def test_band_filters():
    """They sum to the identity, and each passes the middle of its own band."""
    bands = torch.from_numpy(augment.band_filters(augment._SYM2))
    identity = torch.zeros(43, dtype=torch.float64)
    identity[21] = 1
    torch.testing.assert_close(bands.sum(dim=0), identity)
    response = torch.fft.rfft(bands, n=1024).abs()
    frequencies = torch.linspace(0, 1, 513)  # of Nyquist
    for band, middle in enumerate((0.0, 3 / 16, 3 / 8, 1.0)):
        assert response[:, (frequencies - middle).abs().argmin()].argmax() == band


# What it must leave alone.


@pytest.mark.parametrize("name", AUGPIPES)
def test_p_zero_is_the_identity(name):
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(pipe_of(name, p=0.0)(images), images)


@pytest.mark.parametrize("name", ["bg", "color", "filter", "noise", "cutout"])
def test_images_that_are_spared_do_not_change(name):
    """Nearly at p = 0 everything runs, and happens to no image."""
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(pipe_of(name, p=1e-9)(images), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 12, 20), (2, 4, 20, 9), (1, 3, 8, 8), (0, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("name", AUGPIPES)
def test_shapes(name, shape):
    images = torch.randn(shape)
    y = pipe_of(name)(images)
    assert y.shape == images.shape
    assert y.dtype == images.dtype
    assert y.isfinite().all()


def test_alpha_moves_with_the_image_and_keeps_its_values():
    images = torch.randn(2, 4, 24, 24)
    everything = AUGPIPES["bgcf"] | {"cutout": 1}
    y = pipe_of(everything)(images, debug_percentile=0.7)
    colorless = pipe_of(AUGPIPES["bg"] | {"cutout": 1})(images[:, 3:], debug_percentile=0.7)
    torch.testing.assert_close(y[:, 3:], colorless)
    torch.testing.assert_close(y[:, :3], pipe_of(everything)(images[:, :3], debug_percentile=0.7))


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 5, 8, 8), (3, 8, 8)], ids=str)
def test_refuses_other_channels(shape):
    with pytest.raises(ValueError, match="images has shape"):
        pipe_of("bgc")(torch.zeros(shape))


def test_refuses_other_numbers_of_bands():
    with pytest.raises(ValueError, match="imgfilter_bands"):
        AugmentPipe(imgfilter_bands=[1, 1])


# Independence: an image meets its own augmentation, whatever else is in the batch.


@pytest.mark.parametrize("size", [(16, 16), (10, 23), (7, 5)], ids=str)
def test_the_margin_of_neighbours_is_of_no_account(size):
    """A neighbour that zooms out by 8 needs a wide margin, and gets it for the whole batch."""
    angle = torch.rand(4, dtype=torch.float64) * 2 * math.pi
    inverse = augment._scale_2d(2 * torch.rand_like(angle) + 0.2, 1.3) @ augment._rotate_2d(angle)
    inverse = inverse @ augment._translate_2d(3 * torch.randn_like(angle), torch.randn_like(angle))
    images, filt = torch.randn(4, 3, *size, dtype=torch.float64), AugmentPipe().Hz_geom
    wide = augment._scale_2d(torch.full([1], 8, dtype=torch.float64), 8)
    together = augment.warp(torch.cat([images, images[:1]]), torch.cat([inverse, wide]), filt)[:4]
    alone = torch.cat([augment.warp(images[[i]], inverse[[i]], filt) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", ["bgc", "bgcfnc"])
def test_same_augmentation_however_the_batch_is_divided(name, parts):
    images, pipe = torch.randn(8, 3, 16, 16), pipe_of(name, p=0.7)

    def augmented(start, step):
        rows = seeding.Rows(8, start, step)
        with seeding.batch_rows(rows, "seed", 1, "augment"):
            return pipe(rows.take(images))

    whole = augmented(0, 1)
    assert relative_error(whole, images) > 0.1
    for start in range(parts):
        torch.testing.assert_close(augmented(start, parts), whole[start::parts], rtol=0, atol=1e-4)


# Derivatives.


@pytest.mark.parametrize("kwargs", [AUGPIPES["bgc"], {"imgfilter": 1, "cutout": 1}], ids=["bgc", "filter, cutout"])
def test_second_derivative(kwargs):
    images = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    fn = lambda x: pipe_of(kwargs)(x, debug_percentile=0.7)  # noqa: E731
    assert torch.autograd.gradcheck(fn, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, images, fast_mode=True)


def test_r1_reaches_the_parameters_behind():
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    weight = torch.randn(3, 16, 16, requires_grad=True)
    logits = (pipe_of("bgcfnc")(images) * weight).tanh().sum(dim=[1, 2, 3])
    (grad,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    grad.square().sum().backward()
    assert weight.grad.isfinite().all()
    assert weight.grad.norm() > 0


# Distributions, at four standard errors. 1x1 or tiny images: a pixel tells what was drawn.

N = 4000


def is_near(samples, mean, std=None):
    std = samples.std() if std is None else std
    return abs(samples.mean() - mean) < 4 * std / math.sqrt(len(samples))


def ramp(n=N, size=4):
    """The left half dark, the right half bright."""
    return torch.tensor([-1.0, 1.0]).repeat_interleave(size // 2).expand(n, 1, size, size)


@pytest.mark.parametrize("p", [1.0, 0.3])
def test_xflip_flips_half_of_the_chosen(p):
    y = pipe_of({"xflip": 1}, p)(ramp())
    flipped = (y[:, 0, 0, 0] > 0).double()
    assert is_near(flipped, p / 2)
    # Next to the edge the filter, which is not quite symmetric, rings.
    torch.testing.assert_close(y, torch.where(flipped.bool()[:, None, None, None], -ramp(), ramp()), rtol=0, atol=0.1)


def test_rotate90_turns_each_way_equally_often():
    corners = torch.tensor([[1.0, 2.0], [4.0, 3.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    y = pipe_of({"rotate90": 1})(corners.expand(N, 1, 8, 8))
    top_left = y[:, 0, 0, 0]
    for corner in range(1, 5):
        assert is_near(((top_left - corner).abs() < 0.5).double(), 0.25)


def test_xint_shifts_by_whole_pixels():
    images = torch.arange(16.0).expand(N, 1, 16, 16)
    y = pipe_of({"xint": 1})(images)
    shift = 8 - y[:, 0, 8, 8]  # |shift| <= 2: away from the reflection
    torch.testing.assert_close(shift, shift.round(), rtol=0, atol=1e-3)
    assert shift.round().abs().max() == 2
    assert is_near(shift, 0)
    assert is_near((shift.round() == 0).double(), 1 / 4)  # round(4 * u - 2) for uniform u


@pytest.mark.parametrize("p", [1.0, 0.4])
def test_rotation_happens_with_the_probability_asked_for(p):
    """Before or after the anisotropic scaling, or both."""
    images = torch.arange(9.0).expand(N, 1, 9, 9)
    spared = (pipe_of({"rotate": 1}, p)(images) - images).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert is_near(spared.double(), 1 - p, std=max(math.sqrt(p * (1 - p)), 1e-6))


@pytest.mark.parametrize(
    ("kwargs", "statistic", "mean", "std"),
    [
        ({"brightness": 1}, lambda y: y, 0.5, 0.2),
        ({"contrast": 1}, lambda y: torch.log2(y / 0.5), 0, 0.5),
        ({"lumaflip": 1}, lambda y: y, 0, 0.5),
        ({"noise": 1}, lambda y: y, 0.5, 0.1),
    ],
    ids=["brightness", "contrast", "lumaflip", "noise"],
)
def test_moments_on_grey(kwargs, statistic, mean, std):
    samples = statistic(pipe_of(kwargs)(torch.full([N, 1, 1, 1], 0.5))).flatten()
    assert is_near(samples, mean)
    assert samples.std().item() == pytest.approx(std, rel=0.1)


def test_hue_and_saturation_keep_the_luma():
    images = torch.randn(N, 3, 1, 1)
    luma = images.mean(dim=1)
    turned, stretched = pipe_of({"hue": 1})(images), pipe_of({"saturation": 1})(images)
    torch.testing.assert_close(turned.mean(dim=1), luma)
    torch.testing.assert_close(stretched.mean(dim=1), luma, rtol=1e-4, atol=1e-5)
    chroma, of_turned, of_stretched = (
        (x - x.mean(dim=1, keepdim=True)).flatten(1) for x in (images, turned, stretched)
    )
    torch.testing.assert_close(of_turned.norm(dim=1), chroma.norm(dim=1))
    cosine = (of_turned * chroma).sum(dim=1) / chroma.square().sum(dim=1)
    assert is_near(cosine, 0)
    assert is_near(cosine.square(), 0.5)
    factors = torch.log2(of_stretched.norm(dim=1) / chroma.norm(dim=1))
    assert is_near(factors, 0)
    assert factors.std().item() == pytest.approx(1, rel=0.1)


def test_cutout_covers_what_it_should():
    """A window of half the size round a uniform centre covers 7/16 of each axis on average."""
    y = pipe_of({"cutout": 1})(torch.ones(N, 1, 16, 16))
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert is_near((y == 0).double().mean(dim=(1, 2, 3)), (7 / 16) ** 2)


def test_imgfilter_keeps_the_expected_power_of_flat_images():
    """A constant has only the lowest band: its gain is never above sqrt(1 / lambda), and 1 where that band is spared."""
    y = pipe_of({"imgfilter": 1, "imgfilter_bands": [1, 0, 0, 0]})(torch.ones(N, 1, 2, 2))[:, 0, 0, 0]
    assert y.max() < 13 / 10  # both axes
    assert is_near((y > 1).double(), 0.5)


def test_seeding_draws_once_per_position():
    """The same key gives the same augmentation, another key another."""
    images, pipe = torch.randn(2, 3, 8, 8), pipe_of("bgc")
    results = []
    for step in (0, 0, 1):
        with seeding.batch_rows(seeding.Rows(2), "seed", step):
            results.append(pipe(images))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


@pytest.mark.parametrize(
    ("bands", "quantile", "mean", "std", "pixels"),
    [
        ([1, 0, 1, 0], 0.2, -0.00269717, 0.2568366, [-0.00591969, -0.00376549, -0.00189117]),
        ([1, 0, 1, 0], 0.9, -0.00328388, 0.3134316, [-0.00716827, -0.00531357, -0.00344019]),
        ([0, 0, 0, 1], 0.9, -0.00278456, 0.2644539, [-0.00606707, -0.00418416, -0.00243398]),
    ],
)
def test_a_band_of_strength_0_stays_as_it_is(bands, quantile, mean, std, pixels):
    """Numbers of the official pipe; a band that is never touched was moved by the percentile (mean -0.00291301 in the first)."""
    images = torch.linspace(-1, 1, 3 * 24 * 24).reshape(1, 3, 24, 24).sin() * torch.linspace(1, 3, 24).cos()
    pipe = AugmentPipe(imgfilter=1, imgfilter_bands=bands)
    pipe.p.fill_(1)
    y = pipe(images, debug_percentile=quantile)
    torch.testing.assert_close(torch.tensor([y.mean(), y.std()]), torch.tensor([mean, std]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(y[0, 1, 11, 3:6], torch.tensor(pixels), rtol=1e-4, atol=1e-7)
