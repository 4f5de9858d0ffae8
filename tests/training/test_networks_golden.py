"""Networks against the reference's numbers: weights from the golden state dicts, outputs, first and second gradients."""

import importlib
import inspect
import json
from pathlib import Path

import pytest
import torch

from tests.helpers.golden import GOLDEN, ROOT, golden_cases, relative_error
from training import networks_stylegan2, networks_stylegan3

OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
INTERFACE = json.loads((GOLDEN / "interface.json").read_text())
CLASSES = {
    "sg2.Generator": networks_stylegan2.Generator,
    "sg2.Discriminator": networks_stylegan2.Discriminator,
    "sg3.Generator": networks_stylegan3.Generator,
}
GENERATOR_CASES = golden_cases("networks_stylegan2_g") + golden_cases("networks_stylegan3_g")
DISCRIMINATOR_CASES = golden_cases("networks_stylegan2_d")


def build(case):
    """The network of a case in eval mode, with the case's weights; every key must fit."""
    network = CLASSES[case.op](**case.args["kwargs"]).eval()
    inputs = case.inputs()
    weights = {name.removeprefix("sd/"): value for name, value in inputs.items() if name.startswith("sd/")}
    network.load_state_dict(weights, strict=True)
    return network, {name: value for name, value in inputs.items() if not name.startswith("sd/")}


def gradient_norms(network, scalar, names):
    params = dict(network.named_parameters())
    grads = torch.autograd.grad(scalar, [params[name] for name in names], allow_unused=True, retain_graph=True)
    return torch.stack([torch.zeros([]) if grad is None else grad.norm() for grad in grads])


@pytest.mark.parametrize("case", GENERATOR_CASES)
def test_generator_outputs(case):
    G, x = build(case)
    expected = case.outputs()
    render = dict(noise_mode="const", force_fp32=True)
    cutoff = case.args.get("truncation_cutoff")
    with torch.no_grad():
        ws = G.mapping(x["z"], x["c"])
        actual = {
            "ws": ws,
            "ws_psi0.7": G.mapping(x["z"], x["c"], truncation_psi=0.7),
            f"ws_psi0.7_cutoff{cutoff}": G.mapping(x["z"], x["c"], truncation_psi=0.7, truncation_cutoff=cutoff),
            "img": G.synthesis(ws, **render),
            "img_psi0.7": G(x["z"], x["c"], truncation_psi=0.7, **render),
        }
        if "img_noise_none" in expected:
            actual["img_noise_none"] = G.synthesis(ws, noise_mode="none", force_fp32=True)
    compared = [name for name in actual if name in expected]
    assert {"ws", "img"} <= set(compared)
    for name in compared:
        assert relative_error(actual[name], expected[name]) < OUTPUT_TOLERANCE, name


@pytest.mark.parametrize("case", GENERATOR_CASES)
def test_generator_gradients(case):
    G, x = build(case)
    expected = case.outputs()
    z = x["z"].requires_grad_(True)
    ws = G.mapping(z, x["c"])
    scalar = (G.synthesis(ws, noise_mode="const", force_fp32=True) * x["R"]).sum()
    dws, dz = torch.autograd.grad(scalar, [ws, z], retain_graph=True)
    assert relative_error(dws, expected["dws"]) < GRADIENT_TOLERANCE
    assert relative_error(dz, expected["dz"]) < GRADIENT_TOLERANCE
    norms = gradient_norms(G, scalar, case.info["param_names"])
    assert relative_error(norms, expected["param_grad_norms"]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("case", GENERATOR_CASES)
def test_path_length_gradients(case):
    G, x = build(case)
    expected = case.outputs()
    if "pl_lengths" not in expected:
        pytest.skip("the case has no path lengths")
    ws = G.mapping(x["z"], x["c"]).detach().requires_grad_(True)
    scalar = (G.synthesis(ws, noise_mode="const", force_fp32=True) * x["R"]).sum()
    (dws,) = torch.autograd.grad(scalar, ws, create_graph=True)
    lengths = dws.square().sum(dim=2).mean(dim=1).sqrt()
    (d_dws,) = torch.autograd.grad(lengths.sum(), ws, retain_graph=True)
    assert relative_error(lengths, expected["pl_lengths"]) < OUTPUT_TOLERANCE
    assert relative_error(d_dws, expected["d_pl_dws"]) < GRADIENT_TOLERANCE
    norms = gradient_norms(G, lengths.sum(), case.info["param_names"])
    assert relative_error(norms, expected["pl_param_grad_norms"]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("case", GENERATOR_CASES)
def test_update_emas(case):
    G, x = build(case)
    expected = case.outputs()
    if "img_update_emas" not in expected:
        pytest.skip("the case has no running means")
    with torch.no_grad():
        images = G(x["z"], x["c"], noise_mode="const", force_fp32=True, update_emas=True)
    assert relative_error(images, expected["img_update_emas"]) < OUTPUT_TOLERANCE
    buffers = dict(G.named_buffers())
    for name, value in expected.items():
        if name.startswith("ema_after/"):
            assert relative_error(buffers[name.removeprefix("ema_after/")], value) < 1e-5, name


@pytest.mark.parametrize("case", DISCRIMINATOR_CASES)
def test_discriminator(case):
    D, x = build(case)
    expected = case.outputs()
    names = case.info["param_names"]
    img = x["img"].requires_grad_(True)
    logits = D(img, x["c"], force_fp32=True)
    (r1_grads,) = torch.autograd.grad(logits.sum(), img, create_graph=True)
    penalty = r1_grads.square().sum(dim=[1, 2, 3])
    assert relative_error(logits, expected["logits"]) < OUTPUT_TOLERANCE
    assert relative_error(r1_grads, expected["r1_grads"]) < GRADIENT_TOLERANCE
    assert relative_error(penalty, expected["r1_penalty"]) < GRADIENT_TOLERANCE
    norms = gradient_norms(D, penalty.sum(), names)
    assert relative_error(norms, expected["r1_param_grad_norms"]) < GRADIENT_TOLERANCE
    (d_img,) = torch.autograd.grad(penalty.sum(), img, retain_graph=True, allow_unused=True)
    if d_img is not None:
        assert relative_error(d_img, expected["d_r1_dimg"]) < GRADIENT_TOLERANCE
    norms = gradient_norms(D, torch.nn.functional.softplus(logits).sum(), names)
    assert relative_error(norms, expected["softplus_param_grad_norms"]) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", INTERFACE["networks"])
def test_state_dict_is_the_official_one(name):
    """Keys, order, shapes, kinds and types at the sizes that people have weights for."""
    spec = INTERFACE["networks"][name]
    with torch.device("meta" if spec["cls"] != "sg3.Generator" else "cpu"):
        network = CLASSES[spec["cls"]](**spec["kwargs"])
    parameters = dict(network.named_parameters())
    actual = [
        {
            "name": key,
            "shape": list(value.shape),
            "kind": "parameter" if key in parameters else "buffer",
            "dtype": str(value.dtype).removeprefix("torch."),
        }
        for key, value in network.state_dict().items()
    ]
    assert actual == spec["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == spec["num_params"]
    if "num_ws" in spec and spec["num_ws"] is not None:
        assert network.num_ws == spec["num_ws"]


@pytest.mark.parametrize("name", [n for n, spec in INTERFACE["networks"].items() if "layers" in spec])
def test_stylegan3_layer_geometry(name):
    spec = INTERFACE["networks"][name]
    synthesis = networks_stylegan3.SynthesisNetwork(
        w_dim=8, **{k: v for k, v in spec["kwargs"].items() if k not in ("z_dim", "w_dim", "c_dim", "mapping_kwargs")}
    )
    assert synthesis.layer_names == [layer["name"] for layer in spec["layers"]]
    for expected in spec["layers"]:
        layer = getattr(synthesis, expected.pop("name"))
        for key, value in expected.items():
            actual = getattr(layer, key)
            actual = actual.tolist() if hasattr(actual, "tolist") else actual
            assert actual == pytest.approx(value, rel=1e-12), f"{name} {key}"


@pytest.mark.parametrize("name", INTERFACE["signatures"])
def test_signatures(name):
    """Names that other people's code imports take the arguments that it passes."""
    target = find(name)
    expected = INTERFACE["signatures"][name]
    additions = {"self", "skip_w_avg_update"}  # the second is StyleGAN2-ADA's, behind those of StyleGAN3
    parameters = [p for p in inspect.signature(target).parameters.values() if p.name not in additions]
    shown = "(" + ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters) + ")"
    normalize = lambda text: text.replace(" ", "").replace("np.float64(1.4142135623730951)", "1.4142135623730951")  # noqa: E731
    shown = shown.replace("device(type='cpu')", "cpu").replace("'", '"')
    assert normalize(shown) == normalize(expected.replace("'", '"'))


def find(dotted):
    parts = dotted.split(".")
    num_module_parts = 2 if (ROOT / Path(*parts[:2])).with_suffix(".py").exists() else 3
    obj = importlib.import_module(".".join(parts[:num_module_parts]))
    for part in parts[num_module_parts:]:
        obj = getattr(obj, part)
    return obj
