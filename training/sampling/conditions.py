"""What a network is told besides its latents: whether that fits it, and what to say where it does not."""

import sys

from dnnlib.errors import UserError
from training.sampling.sampler import Look, Sampler, label
from training.settings import ALL_CLASSES, ANY_CLASS
from training.sources.label_distribution import LabelDistribution


def check_look(sampler: Sampler, look: Look, has_condition: bool = False) -> None:
    """Raise `UserError` for a class, a label or noise that the network does not have; warn where it has never seen the class.

    has_condition: a file says what the network is told.
    """
    if look.noise_seed is not None:
        check_noise(sampler, look)
    if has_condition:
        return
    if look.label is not None:
        check_label(sampler, look)
    elif sampler.prior is not None:
        if look.class_idx is not None:
            warn(f"--class={look.class_idx} is ignored: the network knows features, no classes")
    else:
        check_class(sampler, look.class_idx)


def check_class(sampler: Sampler, class_idx: int | str | None) -> None:
    c_dim, labels = sampler.network.c_dim, sampler.label_distribution
    if labels is not None and not labels.is_classes:
        if class_idx is not None:
            raise UserError(
                f"--class={class_idx}: the network was trained with vectors of {labels.c_dim} numbers, not with classes; give "
                "--label, or leave both out: each seed then draws one of the vectors that it was trained with"
            )
        return
    if class_idx == ANY_CLASS and c_dim > 0:
        return
    if labels is not None and isinstance(class_idx, int) and 0 <= class_idx < labels.c_dim:
        warn_of_empty_class(class_idx, labels)
    if label(c_dim, class_idx) is None and class_idx is not None:
        warn(f"--class={class_idx} is ignored, since the network is not conditional")


def warn_of_empty_class(class_idx: int, labels: LabelDistribution) -> None:
    if labels.values[class_idx] > 0:
        return
    occurred = labels.occurred()
    known = ", ".join(map(str, occurred[:10])) + (f" and {len(occurred) - 10} more" if len(occurred) > 10 else "")
    warn(
        f"--class={class_idx}: the network never saw an image of this class, and nothing says what it makes of it; it was "
        f"trained with images of {known}"
    )


def check_label(sampler: Sampler, look: Look) -> None:
    assert look.label is not None
    if look.class_idx is not None:
        raise UserError("--label and --class both say what the network is told; leave one out")
    c_dim = sampler.network.c_dim
    if c_dim == 0:
        raise UserError("--label: the network is not conditional; leave it out")
    if len(look.label) != c_dim:
        raise UserError(f"--label: {len(look.label)} numbers, and the network takes {c_dim}")


def noise_mode_for(noise_mode: str, noise_seed: int | None) -> str:
    """--noise-seed draws noise; what says that there is none stays, and is refused."""
    return noise_mode if noise_seed is None or noise_mode == "none" else "random"


def check_noise(sampler: Sampler, look: Look) -> None:
    if not sampler.noise_maps:
        raise UserError("--noise-seed: this network has no pixel noise; leave it out")
    if look.noise_mode != "random":
        raise UserError(f"--noise-seed and --noise-mode={look.noise_mode} do not go together; leave one out")


def chosen_classes(sampler: Sampler, classes: list[int | str] | None) -> list[int | str | None]:
    """The classes that are meant, one after the other: `all` those that the network was trained with; None for no choice.

    Of a network that has no classes, the first.
    """
    if classes is None:
        return [None]
    if classes != [ALL_CLASSES]:
        return list(classes) if sampler.network.c_dim > 0 and sampler.prior is None else [classes[0]]
    labels, c_dim = sampler.label_distribution, sampler.network.c_dim
    if c_dim == 0 or sampler.prior is not None or (labels is not None and not labels.is_classes):
        return [ALL_CLASSES]  # which is warned of like any other
    return list(range(c_dim)) if labels is None else list(labels.occurred())


def warn(message: str) -> None:
    print(f"Warning: {message}", file=sys.stderr)
