"""Constructor arguments of the networks and of their optimizers."""

from collections.abc import Sequence
from typing import Any

import torch

from dnnlib.errors import naming
from training.config.options import TrainingOptions
from training.config.presets import Preset
from training.dataset import ImageFolderDataset

MAGNITUDE_HALF_LIFE = 20_000  # images


def network_shape(dataset: ImageFolderDataset) -> dict[str, Any]:
    """Constructor arguments that both networks take from the data."""
    channels, height, width = dataset.image_shape
    resolution = height if height == width else [height, width]
    return {"c_dim": dataset.label_dim, "img_resolution": resolution, "img_channels": channels}


def generator_kwargs(
    options: TrainingOptions, encoder_kwargs: dict[str, Any] | None, batch_size: int
) -> dict[str, Any]:
    preset = options.preset
    assert options.cbase is not None and options.cmax is not None
    mapping_kwargs: dict[str, Any] = {"num_layers": options.map_depth} if preset.is_style_based else {}
    if encoder_kwargs is not None:
        mapping_kwargs["encoder"] = encoder_kwargs
    kwargs = {
        "class_name": preset.generator,
        "z_dim": options.z_dim,
        "mapping_kwargs": mapping_kwargs,
        "channel_base": options.cbase * preset.width_multiplier,
        "channel_max": options.cmax * preset.width_multiplier,
        **preset.generator_kwargs,
        **growth_kwargs(options),
    }
    if preset.magnitude_ema:
        kwargs["magnitude_ema_beta"] = 0.5 ** (batch_size / MAGNITUDE_HALF_LIFE)
    if preset.is_style_based:
        kwargs |= {"w_dim": options.w_dim} | precision_kwargs(options)
    if options.nhwc:
        kwargs["fp16_channels_last"] = True
    return kwargs


def discriminator_kwargs(options: TrainingOptions, image_shape: Sequence[int]) -> dict[str, Any]:
    """image_shape: `(channels, height, width)`."""
    preset = options.preset
    if preset.discriminator_kind == "projected":
        return {"class_name": preset.discriminator, **projected_kwargs(options, image_shape)}
    kwargs = {
        "class_name": preset.discriminator,
        "channel_base": options.cbase,
        "channel_max": options.cmax,
        **preset.discriminator_kwargs,
        **growth_kwargs(options),
    }
    if preset.is_style_based:
        layout = {"fp16_channels_last": True} if options.nhwc else {}
        kwargs |= {"block_kwargs": {"freeze_layers": options.freezed, **layout}, "mapping_kwargs": {}}
        kwargs |= precision_kwargs(options)
    if preset.has_minibatch_std:
        kwargs["epilogue_kwargs"] = {"mbstd_group_size": options.mbstd_group}
    return kwargs


def projected_kwargs(options: TrainingOptions, image_shape: Sequence[int]) -> dict[str, Any]:
    """What a projected discriminator looks through. Raises `UserError` where that is not at hand."""
    from training.networks_projected import LARGEST, SMALLEST, STRIDE, frozen_detector

    with naming("--discriminator=projected"):
        weights_hash = frozen_detector(torch.device("cpu")).weights_hash
    size = min(max(max(image_shape[1:]) // STRIDE * STRIDE, SMALLEST), LARGEST)
    return {"feature_size": options.feature_size or size, "weights_hash": weights_hash}


def growth_kwargs(options: TrainingOptions) -> dict[str, Any]:
    return {} if options.grow_kimg is None else {"grow_kimg": options.grow_kimg}


def precision_kwargs(options: TrainingOptions) -> dict[str, Any]:
    return {"num_fp16_res": 0, "conv_clamp": None} if options.fp32 else {}


def adam(learning_rate: float | None, preset: Preset) -> dict[str, Any]:
    return {"lr": learning_rate, "betas": list(preset.betas), "eps": 1e-8}
