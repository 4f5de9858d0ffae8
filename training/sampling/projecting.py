"""One call of project.py: the search part by part, the files that it writes, what it says."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import dnnlib
from dnnlib.bars import tqdm
from dnnlib.files import writing
from metrics.detectors import Detector
from training.data.grids import rgb_pixels
from training.data.image_tensors import to_uint8
from training.data.pixels import encode_png
from training.data.videos import save_video
from training.sampling.latent_spaces import SourceSpace, Space, open_space
from training.sampling.nearest_source import Nearest, nearest_sources, num_candidates
from training.sampling.picture_files import write_picture
from training.sampling.projection import Found, Projector, Search, joined, psnr, save_latents
from training.sampling.sampler import Look, Sampler
from training.sampling.targets import Target
from training.sampling.tuning import drawn_again, save_tuned, tune

FRAMES, FPS = 60, 15  # of a film
TIMED_STEPS = 2  # after a first one, from which the time is known
LATENTS, TUNED = "projected_w.npz", "network-tuned.pkl"


@dataclass
class Job:
    """What is looked for, where, by what."""

    sampler: Sampler
    eye: Detector
    look: Look
    space: str
    search: Search
    targets: list[Target]
    batch: int
    folder: Path

    @functools.cached_property
    def goal(self) -> torch.Tensor:
        """All targets, `[n, C, h, w]`."""
        return torch.stack([target.image for target in self.targets])

    def projector(self, space: Space) -> Projector:
        return Projector(self.sampler, self.eye, space, self.search)

    def parts(self) -> list[slice]:
        return [slice(first, first + self.batch) for first in range(0, len(self.targets), self.batch)]

    def named(self, target: Target, file: str) -> str:
        """Under a target's name where there are several."""
        return file if len(self.targets) == 1 else f"{target.name}-{file}"

    def describe(self) -> None:
        for target in self.targets[:10]:
            if target.changes:
                print(f"{target.name}: {target.changes}")
        num = f"{len(self.targets)} pictures" if len(self.targets) > 1 else self.targets[0].name
        where = "source images" if self.space == "source" else self.space
        print(f"Looking for {num} in {where}, {self.search.steps} steps, compared by {self.eye.name} and by pixels")


def run(job: Job, network: str, tuning_steps: int | None, with_film: bool) -> bool:
    """Search, part by part, save, and tune; whether that came to its end."""
    nearest, is_whole = look_among_sources(job) if job.space == "source" else (None, True)
    if nearest is not None:
        save_nearest(job, nearest)
    if not is_whole:
        say_missing(job, 0, tuning_steps)
        return False
    space_of = spaces(job, nearest)
    say_time(job, space_of, tuning_steps)
    all_found = []
    for part in job.parts():
        found, is_whole = look_for(job.projector(space_of(part)), job.goal[part], with_film, part.start)
        save(job, job.targets[part], found, with_film)
        if not is_whole:
            say_missing(job, part.stop, tuning_steps)
            return False
        if tuning_steps is not None:
            all_found.append(replace(found, frames=[]))
    if tuning_steps is None:
        return True
    return tune_network(job, job.projector(space_of(job.parts()[0])), joined(all_found), network, tuning_steps)


def say_missing(job: Job, done: int, tuning_steps: int | None) -> None:
    """What was not done when a search was interrupted."""
    left = [target.name for target in job.targets[done:]]
    if left:
        print(f"Not looked for: {', '.join(left[:5])}" + (f" and {len(left) - 5:,} more" if len(left) > 5 else ""))
    if tuning_steps is not None:
        print("The network was not tuned")


def spaces(job: Job, nearest: Nearest | None) -> Callable[[slice], Space]:
    """Where some of the targets are looked for: source images begin where the nearest ones are, each target elsewhere."""
    if nearest is not None:
        return lambda part: SourceSpace(job.sampler, job.look, nearest.pictures[part])
    space = open_space(job.space, job.sampler, job.look, job.search.seed)
    return lambda part: space


def say_time(job: Job, space_of: Callable[[slice], Space], tuning_steps: int | None) -> None:
    """How long all of it will take, from a few steps that count for nothing."""
    part = job.parts()[0]
    start_time, cpu_time = 0.0, 0.0
    for found in job.projector(space_of(part)).run(job.goal[part]):
        if found.steps == 1:
            start_time, cpu_time = time.time(), time.process_time()
        if found.steps == 1 + TIMED_STEPS:
            break
    else:
        return  # over before it could be timed
    steps = len(job.parts()) * job.search.steps + (tuning_steps or 0)
    wall = (time.time() - start_time) / TIMED_STEPS * steps
    cpu = (time.process_time() - cpu_time) / TIMED_STEPS * steps
    at_a_time = min(job.batch, len(job.targets))
    print(
        f"About {dnnlib.util.format_time(wall)} ({dnnlib.util.format_time(cpu)} of processor time): {steps:,} steps, "
        f"{at_a_time} picture{'s'[: at_a_time > 1]} at a time"
    )


def look_for(projector: Projector, goal: torch.Tensor, with_film: bool, first: int) -> tuple[Found, bool]:
    """Run the search; what it found, and whether it came to its end: Ctrl-C ends it with what it has.

    first: number of the first target among all.
    """
    steps = projector.search.steps
    keep_every = -(-steps // FRAMES) if with_film else None
    found, is_whole = None, True
    try:
        with tqdm(total=steps, desc="Search", unit="step", disable=None, leave=False) as bar:
            for found in projector.run(goal, keep_every, first):
                bar.set_postfix_str(f"distance {float(found.distances.mean()):.3f}", refresh=False)
                bar.update(1)
    except KeyboardInterrupt:
        if found is None:
            raise
        is_whole = False
    assert found is not None
    return projector.finished(found, goal), is_whole


def look_among_sources(job: Job) -> tuple[Nearest | None, bool]:
    """The source image of every target that the network turns into something nearest to it, and whether all were looked at."""
    nearest, num, start_time = None, num_candidates(job.sampler), time.time()
    try:
        with tqdm(total=num, desc="Source images", unit="img", disable=None, leave=False) as bar:
            weight = job.search.pixel_weight
            for nearest in nearest_sources(job.sampler, job.eye, weight, job.goal, job.look, job.batch):
                if bar.n == 0 and nearest.tried < num:
                    expected = (time.time() - start_time) / nearest.tried * num
                    tqdm.write(f"About {dnnlib.util.format_time(expected)} to look at {num:,} source images first")
                bar.update(nearest.tried - bar.n)
    except KeyboardInterrupt:
        return nearest, False
    return nearest, True


def tune_network(job: Job, projector: Projector, found: Found, network: str, steps: int) -> bool:
    """Pivotal tuning: the snapshot that draws the targets, and the pictures that it draws; whether it came to its end."""
    is_whole = True
    try:
        with tqdm(total=steps, desc="Tuning", unit="step", disable=None, leave=False) as bar:
            for distance in tune(projector, found, job.goal, steps, job.batch):
                bar.set_postfix_str(f"distance {distance:.3f}", refresh=False)
                bar.update(1)
    except KeyboardInterrupt:
        is_whole = False
    save_tuned(job.folder / TUNED, network, projector)
    tuned = drawn_again(projector, found, job.goal, job.batch)
    before, after = found.psnr(job.goal), tuned.psnr(job.goal)
    for index, target in enumerate(job.targets):
        name = job.named(target, "tuned.png")
        save_picture(job.folder / name, tuned.images[index])
        print(f"{target.name}: {float(before[index]):.1f} dB, tuned {float(after[index]):.1f} dB: {name}")
    print(f"The tuned network: {job.folder / TUNED}")
    return is_whole


def save_nearest(job: Job, nearest: Nearest) -> None:
    """Write the nearest source image of every target and what the network makes of it, and say which it is."""
    what = "image" if job.sampler.feed.has_images else "seed"
    decibels = psnr(nearest.images, job.goal)
    for index, target in enumerate(job.targets):
        names = [job.named(target, file) for file in ("nearest-source.png", "nearest.png")]
        for name, images in zip(names, (nearest.pictures, nearest.images), strict=True):
            save_picture(job.folder / name, images[index])
        which = f"{what} {nearest.numbers[index]} (counted from 0)"
        if job.sampler.given_names is not None:
            which = job.sampler.given_names[nearest.numbers[index]]
        print(
            f"{target.name}: nearest of {nearest.tried:,} is {which}, {float(decibels[index]):.1f} dB: {', '.join(names)}"
        )


def save(job: Job, targets: list[Target], found: Found, with_film: bool) -> None:
    """Write the files of every target and say how near it came."""
    decibels = found.psnr(torch.stack([target.image for target in targets]))
    for index, target in enumerate(targets):
        pictures = {"target.png": target.image, "proj.png": found.images[index]}
        if job.space == "source":
            pictures["source.png"] = found.points[index]
        for file, image in pictures.items():
            save_picture(job.folder / job.named(target, file), image)
        save_latents(job.folder / job.named(target, LATENTS), found, index, job.space)
        if with_film:
            last = [found.images[index].cpu()] * FPS  # which stays for a second
            film = [*(frame[index] for frame in found.frames), *last]
            frames = (rgb_pixels(torch.cat([target.image, frame], dim=2)[None])[0] for frame in film)
            save_video(job.folder / job.named(target, "proj.gif"), frames, FPS, "--outdir")
        print(
            f"{target.name}: {float(decibels[index]):.1f} dB, distance {float(found.distances[index]):.4f} [{job.eye.name}] "
            f"after {found.steps} steps: {job.named(target, 'proj.png')}, {job.named(target, LATENTS)}"
        )


def save_picture(path: Path, image: torch.Tensor) -> None:
    """`[C, h, w]` in [-1, 1] as a PNG."""
    with writing("--outdir"):
        write_picture(path, encode_png(to_uint8(image[None])[0].permute(1, 2, 0).cpu().numpy()))
