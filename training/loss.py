"""The official name of the loss as an object, for training loops of other people: `training.losses` in its interface."""

from typing import Any

import torch

from dnnlib.errors import UserError
from torch_utils import training_stats
from torch_utils.ops import conv2d_gradfix
from training import losses
from training.run.adversarial import blur

PHASES = {"Gmain": "G", "Greg": "G", "Gboth": "G", "Dmain": "D", "Dreg": "D", "Dboth": "D"}


class Loss:
    """The official base class."""

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, gain, cur_nimg):
        raise NotImplementedError


class StyleGAN2Loss(Loss):
    """The logistic loss with R1, path lengths and style mixing (Karras 2020), and the fading blur (Karras 2021, app. G).

    `accumulate_gradients` runs a phase and leaves its gradients in the networks. `run_G` and `run_D` are for subclasses.
    StyleGAN2-ADA's `G_mapping=` and `G_synthesis=` stand for `G=`.
    """

    def __init__(
        self,
        device: torch.device | str,
        G: Any = None,
        D: Any = None,
        augment_pipe: Any = None,
        r1_gamma: float = 10,
        style_mixing_prob: float = 0,
        pl_weight: float = 0,
        pl_batch_shrink: int = 2,
        pl_decay: float = 0.01,
        pl_no_weight_grad: bool = False,
        blur_init_sigma: float = 0,
        blur_fade_kimg: float = 0,
        G_mapping: Any = None,
        G_synthesis: Any = None,
    ):
        if D is None or (G is None and (G_mapping is None or G_synthesis is None)):
            raise UserError("StyleGAN2Loss: give G= (or G_mapping= and G_synthesis=) and D=")
        self.device, self.G, self.D, self.augment_pipe = device, G, D, augment_pipe
        self.G_mapping = G.mapping if G_mapping is None else G_mapping
        self.G_synthesis = G.synthesis if G_synthesis is None else G_synthesis
        self.r1_gamma, self.style_mixing_prob = r1_gamma, style_mixing_prob
        self.pl_weight, self.pl_batch_shrink, self.pl_decay = pl_weight, pl_batch_shrink, pl_decay
        self.pl_no_weight_grad, self.pl_mean = pl_no_weight_grad, torch.zeros([], device=device)
        self.blur_init_sigma, self.blur_fade_kimg = blur_init_sigma, blur_fade_kimg

    def run_G(self, z, c, update_emas=False):
        """(images, ws)"""
        ws = self.G_mapping(z, c, update_emas=update_emas)
        if self.style_mixing_prob > 0:
            num_ws = ws.shape[1]
            first_mixed = num_ws
            if float(torch.rand([])) < self.style_mixing_prob:
                first_mixed = int(torch.randint(1, num_ws, []))
            other = self.G_mapping(torch.randn_like(z), c)
            ws = torch.cat([ws[:, :first_mixed], other[:, first_mixed:]], dim=1)
        return self.G_synthesis(ws, update_emas=update_emas), ws

    def run_D(self, img, c, blur_sigma=0, update_emas=False):
        img = blur(img, blur_sigma)
        if self.augment_pipe is not None:
            img = self.augment_pipe(img)
        return self.D(img, c, update_emas=update_emas)

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, gain, cur_nimg):
        if phase not in PHASES:
            raise ValueError(f"phase is {phase!r}, must be one of: {', '.join(PHASES)}")
        parts = self.parts(phase, real_img, real_c, gen_z, gen_c, self.blur_sigma(cur_nimg))
        for loss in parts:
            loss.mean().mul(gain).backward()

    def blur_sigma(self, cur_nimg: float) -> float:
        fade = self.blur_fade_kimg * 1000
        return max(1 - cur_nimg / fade, 0) * self.blur_init_sigma if fade > 0 else 0.0

    def parts(self, phase, real_img, real_c, gen_z, gen_c, sigma):
        """The losses of a phase, per sample, one after the other: each is to be differentiated before the next is made."""
        has_reg = {"G": self.pl_weight, "D": self.r1_gamma}[PHASES[phase]] != 0
        phase = phase if has_reg else {"Gboth": "Gmain", "Dboth": "Dmain"}.get(phase, phase)
        if phase in ("Gmain", "Gboth"):
            images, _ = self.run_G(gen_z, gen_c)
            yield self.report("G/loss", losses.generator_loss(self.run_D(images, gen_c, sigma)))
        if phase in ("Greg", "Gboth") and has_reg:
            yield self.path_length(gen_z, gen_c)
        if phase in ("Dmain", "Dboth"):
            images, _ = self.run_G(gen_z, gen_c, update_emas=True)
            yield losses.discriminator_fake_loss(self.run_D(images.detach(), gen_c, sigma, update_emas=True))
        if phase in ("Dmain", "Dboth", "Dreg") and (phase != "Dreg" or has_reg):
            yield self.on_reals(phase, real_img, real_c, sigma)

    def path_length(self, gen_z, gen_c):
        n = max(len(gen_z) // self.pl_batch_shrink, 1)
        images, ws = self.run_G(gen_z[:n], None if gen_c is None else gen_c[:n])
        with conv2d_gradfix.no_weight_gradients(self.pl_no_weight_grad):
            lengths = losses.path_lengths(images, ws, torch.randn_like(images))
        self.pl_mean = self.pl_mean.lerp(lengths.detach().mean(), self.pl_decay)
        return self.report("G/reg", (lengths - self.pl_mean).square() * self.pl_weight)

    def on_reals(self, phase, real_img, real_c, sigma):
        images = real_img.detach().requires_grad_(phase != "Dmain")
        logits = self.run_D(images, real_c, sigma)
        training_stats.report("Loss/signs/real", logits.sign())
        loss = losses.discriminator_real_loss(logits).flatten() if phase != "Dreg" else 0
        if phase != "Dmain":
            loss = loss + losses.r1_penalty(logits, images) * (self.r1_gamma / 2)
        return self.report("D/loss", loss)

    @staticmethod
    def report(name, loss):
        training_stats.report(f"Loss/{name}", loss)
        return loss
