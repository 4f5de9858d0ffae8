"""Names and bounds of settings that command lines show. It imports no torch, so that `--help` does not wait for it."""

ENCODERS = ("flatten", "flatten-crop", "conv", "identity")  # rows of `training.sources.encoders.ENCODERS`
NORMS = ("none", "standardize", "whiten")  # of theirs
LOSSES = ("logistic", "hinge", "wgan-gp", "relativistic")  # rows of `training.losses.LOSSES`
DISCRIMINATORS = ("own", "projected")  # that of the configuration's paper, and `training.config.presets.DISCRIMINATORS`
SOURCE_MATCHES = ("random", "label", "csid")
CORESETS = ("prior", "target")
# Rows of `training.augment.AUGPIPES`.
AUGPIPES = ("blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc")
AUGMENTATIONS = ("noaug", "ada", "fixed", "diff")
PRIOR_NORMS = ("unit", "none")
PRIOR_SAMPLINGS = ("memory", "kmeans", "gmm")
LATEST = "latest"  # of --resume and --network
RUNS = "training-runs"  # where runs go by default
MAX_SEED = 2**32 - 1  # what NumPy's RandomState takes
SPACES = ("z", "w", "w+", "source")  # in which project.py looks
DIRECTION_METHODS = ("sefa", "pca", "mean", "svm")
ANY_CLASS, ALL_CLASSES = "any", "all"  # of --class: each seed draws one; each seed in each
