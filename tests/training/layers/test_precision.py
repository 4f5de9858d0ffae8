"""Which precision a run computes in, and that reduced precision stays close to float32."""

import pytest
import torch

from torch_utils.ops import dispatch
from training import losses, networks_stylegan2, networks_stylegan3
from training.layers import precision
from training.layers.precision import FLOAT32, Precision, PrecisionPlan, plan_precision, settle_precision

CPU = torch.device("cpu")
BFLOAT16 = Precision(torch.bfloat16, torch.channels_last)
REDUCED = PrecisionPlan(BFLOAT16, BFLOAT16, tf32=False, reason="for the test")
NETWORKS = {
    "stylegan2": (networks_stylegan2, {}),
    "stylegan3-t": (networks_stylegan3, {}),
    "stylegan3-r": (networks_stylegan3, {"conv_kernel": 1, "use_radial_filters": True}),
}


def make(cfg, device="cpu"):
    torch.manual_seed(0)
    module, kwargs = NETWORKS[cfg]
    G = module.Generator(32, 0, 32, 32, 3, channel_base=512, channel_max=16, **kwargs)
    D = networks_stylegan2.Discriminator(0, 32, 3, channel_base=512, channel_max=16)
    return G.to(device), D.to(device)


@pytest.mark.parametrize(
    ("flags", "dtype", "words"),
    [
        ("flags: fma avx2", torch.float32, "float32: this cpu has no faster arithmetic"),
        ("flags: avx512f avx512_bf16", torch.bfloat16, "AVX512-BF16"),
        ("flags: avx512_bf16 amx_tile amx_bf16", torch.bfloat16, "AMX"),
    ],
)
def test_the_processor_decides(monkeypatch, flags, dtype, words):
    monkeypatch.setattr(precision, "processor_flags", lambda: flags)
    plan = plan_precision(CPU, fp32=False)
    assert plan.halved.dtype == plan.others.dtype == dtype
    assert words in plan.reason
    assert plan_precision(CPU, fp32=True).halved == FLOAT32


@pytest.mark.parametrize("cfg", NETWORKS)
def test_bfloat16_is_close_to_float32(cfg):
    G, D = make(cfg)
    assert settle_precision(REDUCED, G, D, CPU, batch=4) is REDUCED
    z = torch.randn(4, 32)
    images = G(z, None, noise_mode="const")
    assert images.dtype == torch.float32
    exact = G(z, None, noise_mode="const", force_fp32=True)
    error = (images - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 0.03
    losses.generator_loss(D(images, None)).mean().backward()
    for network in (G, D):
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


def test_weights_that_do_not_bear_it_stay_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "MAX_ERROR", 1e-6)
    G, D = make("stylegan2")
    plan = settle_precision(REDUCED, G, D, CPU, batch=4)
    assert plan.halved == plan.others == FLOAT32
    assert "reduced precision is off by" in plan.reason
    z = torch.randn(4, 32)
    assert torch.equal(G(z, None, noise_mode="const"), G(z, None, noise_mode="const", force_fp32=True))


def test_nan_counts_as_an_error():
    G, D = make("stylegan2")
    with torch.no_grad():
        G.synthesis.b32.conv1.bias.fill_(float("nan"))
    assert settle_precision(REDUCED, G, D, CPU, batch=4).halved == FLOAT32


def test_networks_of_which_nobody_decided_are_exact_on_a_processor():
    G, _ = make("stylegan2")
    z = torch.randn(2, 32)
    assert torch.equal(G(z, None, noise_mode="const"), G(z, None, noise_mode="const", force_fp32=True))


@pytest.mark.parametrize("cfg", NETWORKS)
def test_what_a_gpu_would_compute_fits_together(cfg, monkeypatch):
    """Shapes, dtypes and derivatives of the float16 path, on a device without numbers and with the kernels' fakes."""
    everything = frozenset({torch.float32, torch.float16})
    monkeypatch.setitem(
        dispatch._providers, "meta", dispatch.Provider(lambda: dispatch.Readiness(True, ""), everything)
    )
    monkeypatch.setitem(dispatch._readiness, "meta", dispatch.Readiness(True, ""))
    G, D = make(cfg, device="meta")
    PrecisionPlan(Precision(torch.float16, torch.channels_last), FLOAT32, True, "").apply(G, D)
    ws = G.mapping(torch.empty(4, 32, device="meta"), None)
    images = G.synthesis(ws, noise_mode="const")
    assert images.dtype == torch.float32
    losses.generator_loss(D(images, None)).mean().backward()
    real = torch.empty(4, 3, 32, 32, device="meta", requires_grad=True)
    losses.r1_penalty(D(real, None), real).mean().backward()
    if cfg == "stylegan2":
        ws = G.mapping(torch.empty(4, 32, device="meta"), None)
        images = G.synthesis(ws, noise_mode="const")
        losses.path_lengths(images, ws, torch.empty_like(images)).mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in [*G.parameters(), *D.parameters()])
