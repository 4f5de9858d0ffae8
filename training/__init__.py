"""Generators, what feeds them, and their training."""

from pathlib import Path

NETWORKS = sorted(path.stem for path in Path(__file__).parent.glob("networks*.py"))
BOTH = ("Generator", "Discriminator")
KINDS = {
    "networks_fastgan": ("Generator",),
    "networks_projected": ("Discriminator",),
}  # of those that have one of the two

# Classes that snapshots may name -> the modules that they live in. A class keeps the name under which files know it: whoever
# moves one changes the right side only. No torch is imported for this.
STORED_CLASSES = {
    **{f"training.{name}.{kind}": f"training.{name}" for name in NETWORKS for kind in KINDS.get(name, BOTH)},
    "training.augment.AugmentPipe": "training.augment",
    "training.diff_augment.DiffAugment": "training.diff_augment",
    "training.cascade.Cascade": "training.sources.cascade",
    "training.source.GaussianSource": "training.sources.source",
    "training.source.ImageSource": "training.sources.source",
    "training.prior.InstancePrior": "training.sources.prior",
    "training.label_distribution.LabelDistribution": "training.sources.label_distribution",
}
