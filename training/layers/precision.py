"""In which precision and memory layout layers compute, decided in one place.

Weights, styles, images, losses and everything at the lowest resolution stay float32. What may be halved are the feature
maps and the convolutions between them. How many resolutions of a network ask for it (`num_fp16_res`) is an argument that
users know and snapshots keep; what a run makes of it on its machine is decided here and set on its networks. A network
of which nobody decided computes as its arguments say: float16 on a GPU, float32 on a processor.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from torch_utils import distributed, seeding
from torch_utils.misc import Network
from torch_utils.ops.cpu_build import processor_flags

MAX_ERROR = 0.05  # of images and logits against float32, relative, at the start of a run


class Precision(NamedTuple):
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.contiguous_format


FLOAT32 = Precision(torch.float32)


class MixedPrecision(torch.nn.Module):
    """A layer or block that can compute in half precision."""

    use_fp16 = False  # asked for by `num_fp16_res`
    channels_last = False  # asked for by `fp16_channels_last`
    halved: Precision | None = None  # what a run decided for its layers that ask for half precision
    others: Precision | None = None  # and for those that do not
    works_on_planes = False  # on a GPU, most of its time goes into kernels that want NCHW

    def precision(self, force_fp32: bool, device: torch.device) -> Precision:
        if force_fp32:
            return FLOAT32
        if self.halved is not None and self.others is not None:
            chosen = self.halved if self.use_fp16 else self.others
            is_on_cpu = device.type == "cpu"
            return chosen if is_on_cpu or not self.works_on_planes else Precision(chosen.dtype)
        if not self.use_fp16 or device.type != "cuda":
            return FLOAT32
        return Precision(torch.float16, torch.channels_last if self.channels_last else torch.contiguous_format)


@dataclass(frozen=True)
class PrecisionPlan:
    """What a run computes in, and why."""

    halved: Precision  # layers that ask for half precision
    others: Precision  # the rest
    tf32: bool  # whether float32 convolutions and products on a GPU may round their inputs to 10 bits
    reason: str

    def apply(self, *networks: torch.nn.Module) -> None:
        for network in networks:
            for module in network.modules():
                if isinstance(module, MixedPrecision):
                    module.halved, module.others = self.halved, self.others

    @property
    def is_reduced(self) -> bool:
        return self.tf32 or self.halved != FLOAT32

    def as_data(self) -> dict[str, Any]:
        """Plain data for a training state; `plan_from_data` is the inverse."""
        return {
            "halved": [str(value) for value in self.halved],
            "others": [str(value) for value in self.others],
            "tf32": self.tf32,
            "reason": self.reason,
        }


def full_precision(reason: str) -> PrecisionPlan:
    return PrecisionPlan(FLOAT32, FLOAT32, tf32=False, reason=f"float32: {reason}")


def plan_from_data(data: Mapping[str, Any]) -> PrecisionPlan:
    """The plan that `as_data` describes."""

    def precision(names: Sequence[str]) -> Precision:
        dtype, memory_format = (getattr(torch, name.removeprefix("torch.")) for name in names)
        return Precision(dtype, memory_format)

    return PrecisionPlan(precision(data["halved"]), precision(data["others"]), data["tf32"], data["reason"])


def plan_precision(device: torch.device, fp32: bool, allow_tf32: bool | None = None) -> PrecisionPlan:
    """The fastest arithmetic that the device has hardware for; float32 where it has none, and with --fp32=1.

    allow_tf32: whether a GPU may use TF32; None leaves that to the rule.
    """
    plan = fastest(device, fp32)
    if allow_tf32 is None or device.type != "cuda" or plan.tf32 == allow_tf32:
        return plan
    chosen = "TF32 where there are units for it" if allow_tf32 else "no TF32"
    reason = f"{plan.reason.replace('TF32 elsewhere', 'float32 elsewhere')}; {chosen} (--allow-tf32={int(allow_tf32)})"
    return dataclasses.replace(plan, tf32=allow_tf32, reason=reason)


def fastest(device: torch.device, fp32: bool) -> PrecisionPlan:
    """The plan by the rule."""
    if fp32:
        return full_precision("--fp32=1")
    if device.type == "cuda":
        half = Precision(torch.float16, torch.channels_last)
        tf32 = torch.cuda.get_device_capability(device) >= (8, 0)
        rest = "TF32 elsewhere" if tf32 else "float32 elsewhere"
        return PrecisionPlan(half, FLOAT32, tf32, f"float16 at the highest resolutions, {rest}; --fp32=1 turns it off")
    units = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
    found = [name for flag, name in units.items() if flag in processor_flags().split()]
    if device.type != "cpu" or not found:
        return full_precision(f"this {device.type} has no faster arithmetic")
    half = Precision(torch.bfloat16, torch.channels_last)
    reason = f"bfloat16 feature maps and convolutions: this processor has {found[0]}; --fp32=1 turns it off"
    return PrecisionPlan(half, half, tf32=False, reason=reason)


def settle_precision(plan: PrecisionPlan, G: Network, D: Network, device: torch.device, batch: int) -> PrecisionPlan:
    """Apply the plan to the networks if their outputs stay within MAX_ERROR of those in float32, else float32.

    All ranks settle on the same; one whose hardware computes in float32 only decides for all.
    """
    if not all(distributed.gather_objects(plan.is_reduced)) and plan.is_reduced:
        plan = full_precision("a process of this run has no faster arithmetic")
    plan.apply(G, D)
    if plan.is_reduced:
        error = max(distributed.gather_objects(reduction_error(plan, G, D, device, batch)), key=nan_last)
        if not error <= MAX_ERROR:
            reason = f"reduced precision is off by {error:.1%} on these weights, {MAX_ERROR:.0%} are allowed"
            plan = full_precision(reason)
            plan.apply(G, D)
    set_tf32(plan.tf32)
    return plan


@torch.no_grad()
def reduction_error(plan: PrecisionPlan, G: Network, D: Network, device: torch.device, batch: int) -> float:
    """Error of what `batch` latents become, against float32: of images relative to their root mean square, of logits
    relative to 1 (where the losses bend) or to theirs if that is larger."""
    gen = torch.Generator().manual_seed(0)
    z = torch.randn([batch, G.z_dim], generator=gen).to(device)
    c = torch.zeros([batch, G.c_dim], device=device)
    outputs = []
    for exact in (True, False):
        set_tf32(plan.tf32 and not exact)
        with seeding.batch_rows(seeding.Rows(batch), "precision"):
            images = G(z, c, noise_mode="const", force_fp32=exact)
            outputs.append((images, D(images, c, force_fp32=exact)))
    (images, logits), (reduced_images, reduced_logits) = outputs
    image_error = rms(reduced_images - images) / rms(images)
    return max(image_error, rms(reduced_logits - logits) / max(rms(logits), 1.0))


def nan_last(error: float) -> float:
    return math.inf if math.isnan(error) else error


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def set_tf32(enabled: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = enabled
