"""The official keywords of the training loop, as this project's description of a run, and the other way round."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from training.config.presets import MBSTD_GROUP, PRESETS
from training.config.run_config import TrainingConfig
from training.config.source_specs import NoiseSpec
from training.dataset import ImageFolderDataset

DATASET = "training.dataset.ImageFolderDataset"
LOSS = "training.loss.StyleGAN2Loss"
PATH_LENGTHS = {"pl_batch_shrink": 2, "pl_decay": 0.01, "pl_no_weight_grad": None}  # None: changes no number


def config_from_official(
    *,
    run_dir: Any = ".",
    training_set_kwargs: Mapping[str, Any] = {},
    data_loader_kwargs: Mapping[str, Any] = {},
    G_kwargs: Mapping[str, Any] = {},
    D_kwargs: Mapping[str, Any] = {},
    G_opt_kwargs: Mapping[str, Any] = {},
    D_opt_kwargs: Mapping[str, Any] = {},
    augment_kwargs: Mapping[str, Any] | None = None,
    loss_kwargs: Mapping[str, Any] = {},
    metrics: Any = (),
    random_seed: int = 0,
    num_gpus: int = 1,
    rank: int = 0,
    batch_size: int = 4,
    batch_gpu: int | None = 4,
    ema_kimg: float = 10,
    ema_rampup: float | None = 0.05,
    G_reg_interval: int | None = None,
    D_reg_interval: int | None = 16,
    augment_p: float = 0,
    ada_target: float | None = None,
    ada_interval: int = 4,
    ada_kimg: int = 500,
    total_kimg: float = 25000,
    kimg_per_tick: float = 4,
    image_snapshot_ticks: int | None = 50,
    network_snapshot_ticks: int | None = 50,
    resume_pkl: str | None = None,
    resume_kimg: float = 0,
    cudnn_benchmark: bool = True,
    allow_tf32: bool | None = None,
    abort_fn: Any = None,
    progress_fn: Any = None,
) -> tuple[TrainingConfig, Path, torch.device]:
    """`(config, run folder, device)` of the official `training_loop(**keywords)`.

    Pictures come with snapshots (`network_snapshot_ticks`). Raises `UserError` for what has no counterpart here.
    """
    refuse("abort_fn", abort_fn is not None, "a signal stops a run (SIGUSR1, Ctrl-C)")
    refuse("progress_fn", progress_fn is not None, "read stats.jsonl in the run's folder")
    refuse("resume_kimg", resume_kimg != 0, "train.py --resume=latest continues a run exactly")
    refuse("ada_interval", ada_interval != 4, "it is 4")
    refuse("network_snapshot_ticks", network_snapshot_ticks is None, "give a number of ticks")
    loss = dict(loss_kwargs)
    refuse("loss_kwargs.class_name", loss.pop("class_name", LOSS) != LOSS, "train.py --loss has others")
    for name, usual in PATH_LENGTHS.items():
        refuse(f"loss_kwargs.{name}", loss.pop(name, usual) != usual and usual is not None, f"it is {usual}")
    data = dict(training_set_kwargs)
    refuse("training_set_kwargs.class_name", data.pop("class_name", DATASET) != DATASET, f"it is {DATASET}")
    dataset = ImageFolderDataset(**data)
    height, width = dataset.image_shape[1:]
    shape = {
        "c_dim": dataset.label_dim,
        "img_resolution": height if height == width else [height, width],
        "img_channels": dataset.num_channels,
    }
    generator = flat(G_kwargs)
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    config = TrainingConfig(
        cfg=next(name for name, row in PRESETS.items() if row.generator == generator["class_name"]),
        desc=Path(run_dir).name,
        outdir=str(Path(run_dir).parent),
        training_set_kwargs=data,
        data_fingerprint=dataset.fingerprint,
        source=NoiseSpec(generator["z_dim"]),
        G_kwargs=generator | shape,
        D_kwargs=flat(D_kwargs) | shape,
        G_opt_kwargs=adam("G_opt_kwargs", G_opt_kwargs),
        D_opt_kwargs=adam("D_opt_kwargs", D_opt_kwargs),
        device=device.type,
        num_gpus=num_gpus,
        batch_size=batch_size,
        batch_gpu=batch_gpu,
        mbstd_group=dict(D_kwargs.get("epilogue_kwargs", {})).get("mbstd_group_size") or MBSTD_GROUP,
        r1_gamma=loss.pop("r1_gamma", 10),
        pl_weight=loss.pop("pl_weight", 0),
        G_reg_interval=G_reg_interval,
        D_reg_interval=D_reg_interval,
        style_mixing_prob=loss.pop("style_mixing_prob", 0),
        blur_init_sigma=loss.pop("blur_init_sigma", 0),
        blur_fade_kimg=loss.pop("blur_fade_kimg", 0),
        augpipe_kwargs=None
        if augment_kwargs is None
        else {k: v for k, v in augment_kwargs.items() if k != "class_name"},
        augment_p=augment_p,
        ada_target=ada_target,
        ada_kimg=ada_kimg,
        ema_kimg=ema_kimg,
        ema_rampup=ema_rampup,
        resume=resume_pkl,
        total_kimg=total_kimg,
        kimg_per_tick=kimg_per_tick,
        snapshot_ticks=network_snapshot_ticks,
        seed=random_seed,
        fp32=generator.get("num_fp16_res") == 0,
        cudnn_benchmark=cudnn_benchmark,
        cuda_graphs=False,
        deterministic=False,
        num_workers=data_loader_kwargs.get("num_workers", 3),
        metrics=list(metrics),
    )
    refuse(f"loss_kwargs.{', '.join(loss)}", bool(loss), "leave it out")
    return config, Path(run_dir), device


def refuse(name: str, is_refused: bool, instead: str) -> None:
    if is_refused:
        raise UserError(f"training_loop: {name} is not taken here: {instead}")


def flat(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a network; StyleGAN2-ADA nests the synthesis arguments, in a module that is called `networks`."""
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in kwargs.items()}
    result |= result.pop("synthesis_kwargs", {})
    result["class_name"] = result["class_name"].replace("training.networks.", "training.networks_stylegan2.")
    return result


def adam(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    refuse(f"{name}.class_name", kwargs.get("class_name", "torch.optim.Adam") != "torch.optim.Adam", "it is Adam")
    return {"lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-8} | {k: v for k, v in kwargs.items() if k != "class_name"}


def official_fields(config: TrainingConfig) -> dict[str, Any]:
    """What scripts of other people look for in `training_options.json`, beside this project's fields."""
    loss = {
        "class_name": LOSS,
        "r1_gamma": config.r1_gamma,
        "style_mixing_prob": config.style_mixing_prob,
        "pl_weight": config.pl_weight,
        "blur_init_sigma": config.blur_init_sigma,
        "blur_fade_kimg": config.blur_fade_kimg,
    }
    return {
        "loss_kwargs": loss if config.loss == "logistic" else {"loss": config.loss, "r1_gamma": config.r1_gamma},
        "random_seed": config.seed,
        "training_set_kwargs": {"class_name": DATASET, **config.training_set_kwargs},
    }
