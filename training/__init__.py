"""Generators, what feeds them, and their training."""

# Classes that snapshots may name -> the modules that they live in. A class keeps the name under which files know it: whoever
# moves one changes the right side only. No torch is imported for this.
STORED_CLASSES = {
    "training.networks_stylegan2.Generator": "training.networks_stylegan2",
    "training.networks_stylegan2.Discriminator": "training.networks_stylegan2",
    "training.networks_stylegan3.Generator": "training.networks_stylegan3",
    "training.networks.Generator": "training.networks",
    "training.networks.Discriminator": "training.networks",
    "training.networks_dcgan.Generator": "training.networks_dcgan",
    "training.networks_dcgan.Discriminator": "training.networks_dcgan",
    "training.networks_resnet.Generator": "training.networks_resnet",
    "training.networks_resnet.Discriminator": "training.networks_resnet",
    "training.networks_r3gan.Generator": "training.networks_r3gan",
    "training.networks_r3gan.Discriminator": "training.networks_r3gan",
    "training.networks_pggan.Generator": "training.networks_pggan",
    "training.networks_pggan.Discriminator": "training.networks_pggan",
    "training.augment.AugmentPipe": "training.augment",
    "training.cascade.Cascade": "training.sources.cascade",
    "training.source.GaussianSource": "training.sources.source",
    "training.source.ImageSource": "training.sources.source",
    "training.prior.InstancePrior": "training.sources.prior",
    "training.label_distribution.LabelDistribution": "training.sources.label_distribution",
}
