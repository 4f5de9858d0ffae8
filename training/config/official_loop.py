"""The official keywords of the training loop, as this project's description of a run, and the other way round."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
LOSS_FIELDS = {"r1_gamma": 10, "pl_weight": 0, "style_mixing_prob": 0, "blur_init_sigma": 0, "blur_fade_kimg": 0}
SAME_NAMES = (  # here and there
    "num_gpus", "batch_size", "batch_gpu", "ema_kimg", "ema_rampup", "G_reg_interval", "D_reg_interval", "augment_p",
    "ada_target", "ada_kimg", "total_kimg", "kimg_per_tick", "cudnn_benchmark", "allow_tf32",
)  # fmt: skip
PATH_LENGTHS = {"pl_batch_shrink": 2, "pl_decay": 0.01, "pl_no_weight_grad": None}  # None: changes no number


@dataclass(frozen=True)
class OfficialLoop:
    """The keywords of the official `training_loop`, with their defaults there."""

    run_dir: Any = "."
    training_set_kwargs: Mapping[str, Any] = field(default_factory=dict)
    data_loader_kwargs: Mapping[str, Any] = field(default_factory=dict)
    G_kwargs: Mapping[str, Any] = field(default_factory=dict)
    D_kwargs: Mapping[str, Any] = field(default_factory=dict)
    G_opt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    D_opt_kwargs: Mapping[str, Any] = field(default_factory=dict)
    augment_kwargs: Mapping[str, Any] | None = None
    loss_kwargs: Mapping[str, Any] = field(default_factory=dict)
    metrics: Any = ()
    random_seed: int = 0
    num_gpus: int = 1
    rank: int = 0
    batch_size: int = 4
    batch_gpu: int | None = 4
    ema_kimg: float = 10
    ema_rampup: float | None = 0.05
    G_reg_interval: int | None = None
    D_reg_interval: int | None = 16
    augment_p: float = 0
    ada_target: float | None = None
    ada_interval: int = 4
    ada_kimg: int = 500
    total_kimg: float = 25000
    kimg_per_tick: float = 4
    image_snapshot_ticks: int | None = 50
    network_snapshot_ticks: int | None = 50
    resume_pkl: str | None = None
    resume_kimg: float = 0
    cudnn_benchmark: bool = True
    allow_tf32: bool | None = None
    abort_fn: Any = None
    progress_fn: Any = None

    def refuse_what_is_not_taken(self) -> None:
        """Raise `UserError` for what has no counterpart here."""
        refuse("abort_fn", self.abort_fn is not None, "a signal stops a run (SIGUSR1, Ctrl-C)")
        refuse("progress_fn", self.progress_fn is not None, "read stats.jsonl in the run's folder")
        refuse("resume_kimg", self.resume_kimg != 0, "train.py --resume=latest continues a run exactly")
        refuse("ada_interval", self.ada_interval != 4, "it is 4")
        refuse("network_snapshot_ticks", self.network_snapshot_ticks is None, "give a number of ticks")
        loss = {name: value for name, value in self.loss_kwargs.items() if name not in LOSS_FIELDS}
        refuse("loss_kwargs.class_name", loss.pop("class_name", LOSS) != LOSS, "train.py --loss has others")
        for name, usual in PATH_LENGTHS.items():
            is_other = loss.pop(name, usual) != usual and usual is not None
            refuse(f"loss_kwargs.{name}", is_other, f"it is {usual}")
        refuse(f"loss_kwargs.{', '.join(loss)}", bool(loss), "leave it out")
        data_class = self.training_set_kwargs.get("class_name", DATASET)
        refuse("training_set_kwargs.class_name", data_class != DATASET, f"it is {DATASET}")


def config_from_official(**keywords: Any) -> tuple[TrainingConfig, Path, torch.device]:
    """`(config, run folder, device)` of the official `training_loop(**keywords)`.

    Pictures come with snapshots (`network_snapshot_ticks`). Raises `UserError` for what has no counterpart here.
    """
    official = OfficialLoop(**keywords)
    official.refuse_what_is_not_taken()
    device = torch.device("cuda", official.rank) if torch.cuda.is_available() else torch.device("cpu")
    return build_config(official, device), Path(official.run_dir), device


def build_config(official: OfficialLoop, device: torch.device) -> TrainingConfig:
    data = {name: value for name, value in official.training_set_kwargs.items() if name != "class_name"}
    dataset = ImageFolderDataset(**data)
    height, width = dataset.image_shape[1:]
    shape = {
        "c_dim": dataset.label_dim,
        "img_resolution": height if height == width else [height, width],
        "img_channels": dataset.num_channels,
    }
    generator = flat(official.G_kwargs)
    epilogue = dict(official.D_kwargs.get("epilogue_kwargs", {}))
    pipe = official.augment_kwargs
    return TrainingConfig(
        cfg=next(name for name, row in PRESETS.items() if row.generator == generator["class_name"]),
        desc=Path(official.run_dir).name,
        outdir=str(Path(official.run_dir).parent),
        training_set_kwargs=data,
        data_fingerprint=dataset.fingerprint,
        source=NoiseSpec(generator["z_dim"]),
        G_kwargs=generator | shape,
        D_kwargs=flat(official.D_kwargs) | shape,
        G_opt_kwargs=adam("G_opt_kwargs", official.G_opt_kwargs),
        D_opt_kwargs=adam("D_opt_kwargs", official.D_opt_kwargs),
        device=device.type,
        mbstd_group=epilogue.get("mbstd_group_size") or MBSTD_GROUP,
        augpipe_kwargs=None if pipe is None else {k: v for k, v in pipe.items() if k != "class_name"},
        resume=official.resume_pkl,
        snapshot_ticks=official.network_snapshot_ticks,
        seed=official.random_seed,
        fp32=generator.get("num_fp16_res") == 0,
        cuda_graphs=False,
        deterministic=False,
        num_workers=official.data_loader_kwargs.get("num_workers", 3),
        metrics=list(official.metrics),
        **{name: official.loss_kwargs.get(name, usual) for name, usual in LOSS_FIELDS.items()},
        **{name: getattr(official, name) for name in SAME_NAMES},
    )


def refuse(name: str, is_refused: bool, instead: str) -> None:
    if is_refused:
        raise UserError(f"training_loop: {name} is not taken here: {instead}")


def flat(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the arguments of a network; StyleGAN2-ADA nests the synthesis arguments, in a module that is called `networks`."""
    result: dict[str, Any] = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in kwargs.items()
    }
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
