"""StyleGAN2 networks of the TensorFlow code as data: static arguments and variables, by their names, in our layout.

Such a file is a tuple (G, D, average of G) of network stubs: a name, the arguments that the network was built with, its
variables as (name, array), and for G the parts `mapping` and `synthesis` with variables of their own. The text of the
Python module that each stub carries is never looked at. TensorFlow stores linear weights as `[in, out]`, convolutions as
`[height, width, in, out]`; what a convolution that enlarges does to its kernel, it does mirrored.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torch_utils.data_pickles import Name, SnapshotError, Stateful, shown
from torch_utils.official_pickles import NumpyArray
from torch_utils.ops.upfirdn2d import setup_filter

MIN_VERSION = 4  # of the stubs; StyleGAN2 began with it
MAX_VARIABLES = 10_000
DEFAULT_KERNEL = [1, 3, 3, 1]

# Arguments: theirs, then ours; and what theirs are where a file does not say.
COMMON = {"label_size": "c_dim", "resolution": "img_resolution", "num_channels": "img_channels"}
SYNTHESIS = {
    "fmap_max": "channel_max",
    "architecture": "architecture",
    "num_fp16_res": "num_fp16_res",
    "conv_clamp": "conv_clamp",
}
MAPPING = {"mapping_layers": "num_layers", "mapping_lrmul": "lr_multiplier"}
DEFAULTS = {
    "label_size": 0,
    "resolution": 1024,
    "num_channels": 3,
    "fmap_base": 16 << 10,
    "fmap_max": 512,
    "num_fp16_res": 0,
    "conv_clamp": None,
    "resample_kernel": DEFAULT_KERNEL,
    "nonlinearity": "lrelu",
}
G_DEFAULTS = {
    **DEFAULTS,
    "latent_size": 512,
    "dlatent_size": 512,
    "mapping_layers": 8,
    "mapping_lrmul": 0.01,
    "mapping_nonlinearity": "lrelu",
    "dlatent_avg_beta": 0.995,
    "architecture": "skip",
    "use_noise": True,
}
D_DEFAULTS = {
    **DEFAULTS,
    "mapping_layers": 0,
    "mapping_lrmul": 0.1,
    "architecture": "resnet",
    "mbstd_group_size": 4,
    "mbstd_num_features": 1,
}
# Arguments of training and of calls, or that follow from the variables.
WITHOUT_EFFECT = {
    "components", "dlatent_broadcast", "dtype", "func_name", "fused_modconv", "impl", "is_template_graph",
    "is_training", "is_validation", "label_fmaps", "mapping_fmaps", "mapping_func", "num_layers", "randomize_noise",
    "return_dlatents", "structure", "style_mixing_prob", "synthesis_func", "truncation_cutoff", "truncation_cutoff_val",
    "truncation_psi", "truncation_psi_val",
}  # fmt: skip
FIXED = {"fmap_decay": (1, 1.0), "fmap_min": (1,), "normalize_latents": (True,)}  # the only values that are read


class TensorflowNetwork(Stateful):
    """A network stub."""

    def __init__(self, *args: Any):
        self.version: Any = None
        self.static_kwargs: dict[str, Any] = {}
        self.components: dict[str, TensorflowNetwork] = {}
        self.own_variables: list[Any] = []

    def set_state(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise SnapshotError("a TensorFlow network without a state")
        self.version = state.get("version")
        self.static_kwargs = state.get("static_kwargs") or {}
        self.components = state.get("components") or {}
        self.own_variables = state.get("variables") or []
        if not isinstance(self.static_kwargs, dict) or not isinstance(self.own_variables, list):
            raise SnapshotError("a TensorFlow network whose arguments or variables are in an unknown format")
        if not isinstance(self.components, dict):
            raise SnapshotError("a TensorFlow network whose parts are in an unknown format")

    def variables(self) -> dict[str, np.ndarray]:
        """Its variables by name, and those of its parts as `part/name`."""
        found = {}
        parts = {name: part for name, part in self.components.items() if isinstance(part, TensorflowNetwork)}
        for prefix, network in [("", self), *((f"{name}/", part) for name, part in parts.items())]:
            for variable in network.own_variables:
                if not isinstance(variable, tuple) or len(variable) != 2 or not isinstance(variable[0], str):
                    raise SnapshotError("a TensorFlow network with a variable in an unknown format")
                name, value = variable
                value = value.values if isinstance(value, NumpyArray) else np.asarray(value)
                if value is None or value.dtype.kind not in "fiu":
                    raise SnapshotError(f"the TensorFlow variable {shown(name)} holds no numbers")
                found[prefix + name] = value
                if len(found) > MAX_VARIABLES:
                    raise SnapshotError(f"a TensorFlow network of more than {MAX_VARIABLES:,} variables")
        return found

    def build_spec(self, max_bytes: int | None = None) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
        """Our class, its constructor arguments and its state. Raises `SnapshotError` for what is no StyleGAN2."""
        if type(self.version) is not int or self.version < MIN_VERSION:
            raise SnapshotError(
                f"a TensorFlow network of version {shown(self.version)}; StyleGAN2 is {MIN_VERSION} and later, older ones "
                "are not read"
            )
        variables = self.variables()
        if max_bytes is not None and sum(value.nbytes for value in variables.values()) > max_bytes:
            raise SnapshotError("the networks in the file are larger than the file")
        is_generator = "synthesis" in self.components
        kwargs = self.arguments(G_DEFAULTS if is_generator else D_DEFAULTS)
        build, rules, kind = (
            (generator_arguments, G_RULES, "Generator")
            if is_generator
            else (discriminator_arguments, D_RULES, "Discriminator")
        )
        state = translated(variables, rules)
        state |= filters(state, kwargs["resample_kernel"], is_generator)
        return f"training.networks_stylegan2.{kind}", build(kwargs, variables), state

    def arguments(self, defaults: dict[str, Any]) -> dict[str, Any]:
        given = dict(self.static_kwargs)
        if "w_avg_beta" in given:  # its name in the later code
            given["dlatent_avg_beta"] = given.pop("w_avg_beta")
        for name, value in given.items():
            if name in FIXED and value in FIXED[name]:
                continue
            if name not in defaults and name not in WITHOUT_EFFECT:
                raise SnapshotError(f"a TensorFlow network with {shown(name)}={shown(value)}, which is not supported")
        return {**defaults, **{name: value for name, value in given.items() if name in defaults}}


def generator_arguments(kwargs: dict[str, Any], variables: dict[str, np.ndarray]) -> dict[str, Any]:
    mapping = {ours: kwargs[theirs] for theirs, ours in MAPPING.items()}
    mapping |= {"activation": kwargs["mapping_nonlinearity"], "w_avg_beta": kwargs["dlatent_avg_beta"]}
    mapping |= widths(variables, "mapping/LabelEmbed/weight", "mapping/Dense0/weight", mapping["num_layers"])
    return {
        **common_arguments(kwargs),
        "z_dim": kwargs["latent_size"],
        "w_dim": kwargs["dlatent_size"],
        "mapping_kwargs": mapping,
        "resample_filter": kwargs["resample_kernel"],
        "use_noise": kwargs["use_noise"],
        "activation": kwargs["nonlinearity"],
        "fused_modconv_default": "inference_only",
    }


def discriminator_arguments(kwargs: dict[str, Any], variables: dict[str, np.ndarray]) -> dict[str, Any]:
    if kwargs["label_size"] and "LabelEmbed/weight" not in variables:
        raise SnapshotError(
            "a conditional discriminator of the first TensorFlow code, which has an output for each class, is not supported"
        )
    mapping = {ours: kwargs[theirs] for theirs, ours in MAPPING.items()}
    mapping |= widths(variables, "LabelEmbed/weight", "Mapping0/weight", mapping["num_layers"])
    mapping |= {"activation": kwargs["nonlinearity"]}
    epilogue = {"mbstd_group_size": kwargs["mbstd_group_size"], "mbstd_num_channels": kwargs["mbstd_num_features"]}
    output = variables.get("Output/weight")
    return {
        **common_arguments(kwargs),
        "cmap_dim": int(output.shape[-1]) if kwargs["label_size"] and output is not None else None,
        "block_kwargs": {"activation": kwargs["nonlinearity"], "resample_filter": kwargs["resample_kernel"]},
        "mapping_kwargs": mapping if kwargs["label_size"] else {},
        "epilogue_kwargs": {**epilogue, "activation": kwargs["nonlinearity"]},
    }


def common_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    base = kwargs["fmap_base"]
    if type(base) is not int:
        raise SnapshotError(f"a TensorFlow network with fmap_base={shown(base)}")
    renamed = {ours: kwargs[theirs] for theirs, ours in {**COMMON, **SYNTHESIS}.items()}
    return {**renamed, "channel_base": 2 * base}  # theirs counts from half the resolution


def widths(variables: dict[str, np.ndarray], embedding: str, first: str, num_layers: Any) -> dict[str, int]:
    """Sizes of the mapping's layers, which the arguments do not always tell."""
    found = {}
    if embedding in variables and variables[embedding].ndim == 2:
        found["embed_features"] = int(variables[embedding].shape[1])
    if first in variables and variables[first].ndim == 2 and num_layers != 1:
        found["layer_features"] = int(variables[first].shape[1])
    return found


# Variables


def same(value: np.ndarray) -> np.ndarray:
    return value


def linear(value: np.ndarray) -> np.ndarray:
    return value.transpose()


def conv(value: np.ndarray) -> np.ndarray:
    return value.transpose(3, 2, 0, 1)


def enlarging_conv(value: np.ndarray) -> np.ndarray:
    return conv(value[::-1, ::-1])


def style_bias(value: np.ndarray) -> np.ndarray:
    """Theirs leaves out the 1 that styles start from."""
    return value + 1


def first_image(value: np.ndarray) -> np.ndarray:
    return value[0]


def plane(value: np.ndarray) -> np.ndarray:
    return value[0, 0]


def noise_name(match: re.Match) -> str:
    """Noise inputs are counted from the lowest resolution up, one there and two at each that follows."""
    level, index = divmod(int(match[1]) + 5, 2)
    return f"synthesis.b{2 ** min(level, 30)}.conv{index}.noise_const"


Rule = tuple[str, str | Callable[[re.Match], str], Callable[[np.ndarray], np.ndarray]]
BLOCK = r"(\d+)x\1"
G_RULES: list[Rule] = [
    (r"dlatent_avg", "mapping.w_avg", same),
    (r"mapping/LabelEmbed/weight", "mapping.embed.weight", linear),
    (r"mapping/LabelEmbed/bias", "mapping.embed.bias", same),
    (r"mapping/Dense(\d+)/weight", r"mapping.fc\1.weight", linear),
    (r"mapping/Dense(\d+)/bias", r"mapping.fc\1.bias", same),
    (r"synthesis/4x4/Const/const", "synthesis.b4.const", first_image),
    (r"synthesis/noise(\d+)", noise_name, plane),
    *(
        (rf"synthesis/{BLOCK}/{theirs}/{name}", rf"synthesis.b\1.{ours}.{name_here}", change)
        for theirs, ours, weight in [
            ("Conv", "conv1", conv),
            ("Conv0_up", "conv0", enlarging_conv),
            ("Conv1", "conv1", conv),
            ("ToRGB", "torgb", conv),
            ("Skip", "skip", enlarging_conv),
        ]
        for name, name_here, change in [
            ("weight", "weight", weight),
            ("bias", "bias", same),
            ("noise_strength", "noise_strength", same),
            ("mod_weight", "affine.weight", linear),
            ("mod_bias", "affine.bias", style_bias),
        ]
    ),
]
D_RULES: list[Rule] = [
    (r"LabelEmbed/weight", "mapping.embed.weight", linear),
    (r"LabelEmbed/bias", "mapping.embed.bias", same),
    (r"Mapping(\d+)/weight", r"mapping.fc\1.weight", linear),
    (r"Mapping(\d+)/bias", r"mapping.fc\1.bias", same),
    (r"4x4/Dense0/weight", "b4.fc.weight", linear),
    (r"4x4/Dense0/bias", "b4.fc.bias", same),
    (r"Output/weight", "b4.out.weight", linear),
    (r"Output/bias", "b4.out.bias", same),
    *(
        (rf"{BLOCK}/{theirs}/{name}", rf"b\1.{ours}.{name}", change)
        for theirs, ours in [
            ("Conv", "conv"),
            ("FromRGB", "fromrgb"),
            ("Conv0", "conv0"),
            ("Conv1_down", "conv1"),
            ("Skip", "skip"),
        ]
        for name, change in [("weight", conv), ("bias", same)]
    ),
]


def translated(variables: dict[str, np.ndarray], rules: list[Rule]) -> dict[str, torch.Tensor]:
    """Our names and layout. Raises `SnapshotError` naming a variable that no rule knows or that has another shape."""
    state = {}
    for name, value in variables.items():
        ours, change = place(name, rules)
        try:
            changed = np.array(change(value), dtype=np.float32, order="C")
        except (ValueError, IndexError):
            raise SnapshotError(f"the TensorFlow variable {shown(name)} has shape {list(value.shape)}") from None
        state[ours] = torch.from_numpy(changed)
    return state


def place(name: str, rules: list[Rule]) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """Our name of a variable, and how its layout changes."""
    for pattern, ours, change in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return ours(match) if callable(ours) else match.expand(ours), change
    raise SnapshotError(f"a TensorFlow network with the variable {shown(name)}, which StyleGAN2 does not have")


def filters(state: dict[str, torch.Tensor], kernel: Any, is_generator: bool) -> dict[str, torch.Tensor]:
    """The resampling filters of blocks and convolutions, which are no variables there."""
    if not isinstance(kernel, list | tuple) or not 1 <= len(kernel) <= 32:
        raise SnapshotError(f"a TensorFlow network with resample_kernel={shown(kernel)}")
    resampling, unused = setup_filter(list(kernel)), setup_filter(DEFAULT_KERNEL)
    resampled = ("conv0", "skip") if is_generator else ("conv1", "skip")
    found = {}
    for name in state:
        match = re.fullmatch(r"((?:synthesis\.)?b\d+)\.(conv\d?|skip|fromrgb)\.weight", name)
        if match:
            found[f"{match[1]}.{match[2]}.resample_filter"] = resampling if match[2] in resampled else unused
            if match[1] != "b4":  # the last block of a discriminator resamples nothing
                found[f"{match[1]}.resample_filter"] = resampling
    return found


NAMES = {("dnnlib.tflib.network", "Network"): Name(TensorflowNetwork)}
