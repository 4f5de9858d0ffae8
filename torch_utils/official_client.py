"""Networks of Spider StyleGAN (MIT licence) for programs that read pickles of the official StyleGAN code.

This text travels in the pickles that `legacy.py --format=official` writes, and is run by the loaders of such programs; in
this project it is only looked at. A network becomes an object of the program's own class, from `training.networks*` and
`training.augment`. Where a program has no such module, the StyleGAN2 generator below takes its place, in float32; any
other network can then be carried and saved, not called. It keeps to Python 3.6 and PyTorch 1.7.
"""

import importlib
import importlib.machinery

import torch

import dnnlib
from torch_utils.ops import bias_act, upfirdn2d

ADA_MISSES = ("fused_modconv_default",)  # arguments that came with StyleGAN3's code
OWN_ARGUMENTS = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs")


def find_class(modules, name):
    """The program's class, and whether it is of StyleGAN2-ADA's generation; None where the program has none."""
    try:
        folders = importlib.import_module("training").__path__
    except ImportError:
        return None, False
    for module in modules:
        full_name = "training." + module
        if importlib.machinery.PathFinder.find_spec(full_name, folders) is not None:
            found = getattr(importlib.import_module(full_name), name, None)
            if found is not None:
                return found, module == "networks"
    return None, False


def arguments(init_kwargs, is_ada, is_generator):
    """Constructor arguments in the shape that the program's generation of the code takes."""
    given = {
        name: dnnlib.EasyDict(value) if isinstance(value, dict) else value
        for name, value in init_kwargs.items()
        if not (is_ada and name in ADA_MISSES)
    }
    if is_ada and is_generator:
        own = {name: value for name, value in given.items() if name in OWN_ARGUMENTS}
        rest = {name: value for name, value in given.items() if name not in OWN_ARGUMENTS}
        given = dict(own, synthesis_kwargs=dnnlib.EasyDict(rest))
    return given


class Part(torch.nn.Module):
    """A layer: what it knows and holds."""

    def forward(self, *args, **kwargs):
        raise RuntimeError(
            "this "
            + type(self).__name__
            + " came from Spider StyleGAN and runs only in programs with a class for it: in "
            "training.networks_stylegan3 for StyleGAN3, in training.networks_stylegan2 or training.networks for "
            "discriminators, in training.augment for augmentation"
        )


class Network(Part):
    """A whole network, which becomes one of the program's own where it has the class."""

    def __setstate__(self, state):
        super().__setstate__(state)
        cls, is_ada = find_class(self.client_modules(), type(self).__name__)
        if cls is None:
            return
        kwargs = arguments(self.__dict__["_init_kwargs"], is_ada, type(self).__name__ == "Generator")
        tensors, is_training = self.state_dict(), self.training
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self.__dict__.clear()
        object.__setattr__(self, "__class__", cls)
        self.__init__(**kwargs)
        self.load_state_dict(tensors)
        self.train(is_training)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trainable)

    def client_modules(self):
        return ("networks_stylegan2", "networks")


class Missing(Part):
    """A network that the snapshot did not have."""


class Discriminator(Network):
    pass


class AugmentPipe(Network):
    def client_modules(self):
        return ("augment",)


class Generator(Network):
    def client_modules(self):
        if "input" in self.synthesis._modules:
            return ("networks_stylegan3",)
        return ("networks_stylegan2", "networks")

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, update_emas=False, **synthesis_kwargs):
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas=update_emas)
        return self.synthesis(ws, **synthesis_kwargs)


# The parts of StyleGAN3 and of discriminators: never called


class SynthesisInput(Part):
    pass


class DiscriminatorBlock(Part):
    pass


class DiscriminatorEpilogue(Part):
    pass


class MinibatchStdLayer(Part):
    pass


# StyleGAN2 (Karras 2020), for programs without networks of their own


class FullyConnectedLayer(Part):
    def forward(self, x):
        bias = None if self.bias is None else self.bias * self.bias_gain
        return bias_act.bias_act(x.matmul(self.weight.t() * self.weight_gain), bias, act=self.activation)


class MappingNetwork(Part):
    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, update_emas=False, skip_w_avg_update=True):
        inputs = [unit_mean_square(z.to(torch.float32))]
        if self.c_dim > 0:
            inputs.append(unit_mean_square(self.embed(c.to(torch.float32))))
        w = torch.cat(inputs, dim=1)
        for index in range(self.num_layers):
            w = getattr(self, f"fc{index}")(w)
        if update_emas or not skip_w_avg_update:
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        ws = w.unsqueeze(1).repeat([1, self.num_ws, 1])
        if truncation_psi == 1:
            return ws
        end = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :end], truncation_psi), ws[:, end:]], dim=1)


class SynthesisNetwork(Part):
    def forward(self, ws, noise_mode="random", **unused):
        if "input" in self._modules:
            return super().forward()
        ws = ws.to(torch.float32)
        x, img, first = None, None, 0
        for resolution in self.block_resolutions:
            block = getattr(self, f"b{resolution}")
            x, img = block(x, img, ws[:, first:], noise_mode)
            first += block.num_conv
        return img


class SynthesisBlock(Part):
    def forward(self, x, img, ws, noise_mode):
        if self.in_channels == 0:
            x = self.const.unsqueeze(0).repeat([ws.shape[0], 1, 1, 1])
            x = self.conv1(x, ws[:, 0], noise_mode)
        else:
            is_residual = self.architecture == "resnet"
            shortcut = self.skip(x) * 0.5**0.5 if is_residual else None
            x = self.conv0(x, ws[:, 0], noise_mode)
            x = self.conv1(x, ws[:, 1], noise_mode, gain=0.5**0.5 if is_residual else 1)
            x = x if shortcut is None else shortcut + x
        img = None if img is None else upfirdn2d.upsample2d(img, self.resample_filter)
        if self.num_torgb > 0:
            rgb = self.torgb(x, ws[:, self.num_conv])
            img = rgb if img is None else img + rgb
        return x, img


class SynthesisLayer(Part):
    def forward(self, x, w, noise_mode="random", gain=1):
        x = modulated_convolution(x, self.weight, self.affine(w), True, self.up, self.padding, self.resample_filter)
        if self.use_noise and noise_mode != "none":
            noise = self.noise_const if noise_mode == "const" else torch.randn_like(x[:, :1])
            x = x + noise * self.noise_strength
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act.bias_act(x, self.bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


class ToRGBLayer(Part):
    def forward(self, x, w):
        x = modulated_convolution(x, self.weight, self.affine(w) * self.weight_gain, False, 1, self.padding, None)
        return bias_act.bias_act(x, self.bias, clamp=self.conv_clamp)


class Conv2dLayer(Part):
    def forward(self, x):
        """The shortcut of a residual block: 1x1, without bias, twice the size."""
        return upfirdn2d.upsample2d(torch.nn.functional.conv2d(x, self.weight * self.weight_gain), self.resample_filter)


def unit_mean_square(x):
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def modulated_convolution(x, weight, styles, is_demodulated, up, padding, resample_filter):
    """Every sample with weights of its own, scaled by its style, as the groups of one convolution."""
    n, channels = x.shape[:2]
    own = weight.unsqueeze(0) * styles[:, None, :, None, None]  # [n, out, in, k, k]
    if is_demodulated:
        own = own * (own.square().sum(dim=[2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    x = x.reshape([1, n * channels, *x.shape[2:]])
    if up == 1:
        y = torch.nn.functional.conv2d(x, own.flatten(0, 1), padding=padding, groups=n)
    else:
        # A transposed convolution puts zeros between the pixels; the low-pass filter follows.
        spread = own.transpose(1, 2).flatten(0, 1)
        y = torch.nn.functional.conv_transpose2d(x, spread, stride=up, groups=n)
        taps, kernel = resample_filter.shape[-1], weight.shape[-1]
        before = padding + (taps + up - 1) // 2 - (kernel - 1)
        after = padding + (taps - up) // 2 - (kernel - up)
        y = upfirdn2d.upfirdn2d(y, resample_filter, padding=[before, after, before, after], gain=up**2)
    return y.reshape([n, -1, *y.shape[2:]])
