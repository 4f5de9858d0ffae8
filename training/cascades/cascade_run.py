"""A cascade from its recipe: every stage is a training run in a folder of its own, continued where it stopped."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from torch_utils import distributed, persistence
from torch_utils.launcher import STOPPED
from training.augment import build_augmentation
from training.cascades.cascade_report import CascadeReport
from training.cascades.recipe import Recipe, Stage
from training.checkpoints.snapshot import fingerprint_file, is_snapshot, load_snapshot
from training.checkpoints.state_file import SNAPSHOT_PATTERN, newest_run, numbered
from training.config.flags import OnResume, flag_name
from training.config.option_paths import absolute_options
from training.config.options import FLAGS, TrainingOptions, names_where
from training.config.resolve import Resolved, check_metrics, resolve
from training.config.resume import ResumePoint, find_resume_point, is_finished, read_options
from training.config.run_config import TrainingConfig
from training.config.source_choice import AUTO
from training.data.image_files import content_fingerprint, open_files
from training.data.image_sets import NOISE
from training.data.shards import set_name
from training.run.progress import StopSignal
from training.settings import LATEST

# What the command line may say to all stages: where and how they are computed, not what.
FROM_COMMAND_LINE = names_where(lambda flag: flag.is_beside_cascade)

Parse = Callable[[list[str]], dict[str, Any]]  # arguments of train.py -> values of all of its options
Start = Callable[[TrainingConfig, ResumePoint | None, str], int]  # trains, the text tells how to go on; the exit code


@dataclass(frozen=True)
class StagePlan:
    """A stage, resolved: what it will do, or has done."""

    stage: Stage
    resolved: Resolved
    point: ResumePoint | None
    """The run that is continued or complete; None for one that has not begun."""
    is_finished: bool
    snapshot: str
    """Its last snapshot; where it is not finished, a name that stands for it."""

    @property
    def state_line(self) -> str:
        """How far it is."""
        if self.point is None:
            return "not begun"
        return f"{'complete' if self.is_finished else 'to be continued'}, {self.point.run_dir}"


class CascadeRun:
    """The stages of a recipe in a folder, one after the other.

    parse: the command line of train.py, which gives options of stages their types and meanings. given: what the user
    typed beside --cascade, by option; it wins over the recipe. start: trains one configuration.
    """

    def __init__(self, recipe: Recipe, outdir: str, given: Mapping[str, Any], parse: Parse, start: Start):
        self.recipe, self.parse, self.start = recipe, parse, start
        self.given = check_given(given)
        self.folder = Path(outdir) / f"cascade-{recipe.path.stem}"
        self.plans: dict[str, StagePlan] = {}
        self.expected: dict[str, dict[str, Any]] = {}  # snapshots that stages yet to be trained will leave

    def print_plans(self) -> None:
        """The summary of every stage, for --dry-run."""
        print(
            f"Cascade of {len(self.recipe.stages)} stages in {self.folder}, judged by {', '.join(self.recipe.table) or 'nothing'}"
        )
        for number, stage in enumerate(self.recipe.stages, 1):
            plan = self.plans[stage.name]
            print(f"\nStage {number}, {stage.name}: {plan.state_line}")
            plan.resolved.print_summary()

    def plan_all(self) -> None:
        """Resolve and check every stage, before the first starts. Nothing is written. Raises `UserError`."""
        for stage in self.recipe.stages:
            self.plan(stage)

    def plan(self, stage: Stage) -> StagePlan:
        """Resolve a stage on top of the earlier ones, trained or not. Raises `UserError` that names it."""
        with self.naming(stage):
            options = self.options_of(stage)
            run_dir = newest_run(self.folder / stage.name)
            point = None
            if run_dir is not None:
                self.check_unchanged(stage, run_dir, options)
                point = find_resume_point(as_flags(options, run_dir), names_given(options))
            resolved = resolve(
                options if point is None else point.options, point, judged_by=self.recipe.table, read=self.read
            )
            if point is None and stage.source is not None:  # whose file is called as the files of all stages are
                name = set_name(self.plans[stage.source].snapshot)
                resolved.config.desc = resolved.config.desc.replace(f"-{name}-to-", f"-{stage.source}-to-", 1)
            networks = build_on_meta(resolved.config)
            has_ended = point is not None and is_finished(point)
            if not has_ended:
                self.check_table(resolved)
        if point is not None and has_ended:
            snapshot = last_snapshot(point.run_dir)
        else:
            snapshot = str(self.folder / stage.name / "network-snapshot.pkl")
            self.expected[snapshot] = expected_contents(resolved.config, networks)
        self.plans[stage.name] = StagePlan(stage, resolved, point, has_ended, snapshot)
        return self.plans[stage.name]

    def read(self, path: str, verbose: bool = False) -> dict[str, Any]:
        """A snapshot; of a stage yet to be trained what is known of it, networks without memory."""
        return self.expected[path] if path in self.expected else load_snapshot(path, verbose)

    def options_of(self, stage: Stage) -> TrainingOptions:
        """The options of a stage, with the snapshots of those that it builds on."""
        built_on = {"source": stage.source, "resume": stage.resume}
        snapshots = {key: self.plans[name].snapshot for key, name in built_on.items() if name is not None}
        options = self.parse(stage.arguments({**self.given, **snapshots, "outdir": str(self.folder / stage.name)}))
        if snapshots.get("resume") in self.expected:  # its training state is not there either
            options["resume_optimizer"] = False
        return TrainingOptions(**options | {"desc": stage.name})

    def check_unchanged(self, stage: Stage, run_dir: Path, options: TrainingOptions) -> None:
        """Raise `UserError` where the recipe says something else than what the stage's run was started with."""
        saved = read_options(run_dir)
        before, now = absolute_options(saved["options"]), absolute_options(dataclasses.asdict(options))
        is_over = saved.get("finished_kimg", -1) >= options.kimg
        fixed = {OnResume.FIXED} | ({OnResume.TUNES} if is_over else set())
        free = names_where(lambda flag: flag.on_resume not in fixed)
        if is_over and before["kimg"] > options.kimg:
            free = free - {"kimg"}
        way_out = f"put that back, or move {run_dir} away to train the stage anew"
        for name, value in now.items():
            was = before.get(name)
            was = tuple(was) if isinstance(was, list) else was
            is_settled = name == "desc" or (name == "source_pool" and options.source == AUTO)
            if name not in free and not is_settled and was != value:
                raise UserError(f"has {flag_name(name)}={value} now, and was trained with {was}: {way_out}")
        self.check_built_on(stage, run_dir, saved, options)

    def check_built_on(self, stage: Stage, run_dir: Path, saved: Mapping[str, Any], options: TrainingOptions) -> None:
        """The stages that it was built on are still what they were. Raises `UserError`."""
        way_out = f"move {run_dir} away to train it anew, or bring back what it was built on"
        started_from = saved["options"].get("resume")
        if (started_from is None) != (options.resume is None):
            raise UserError(f"started from {started_from or 'fresh weights'}, the recipe says otherwise now: {way_out}")
        if stage.resume is not None and Path(started_from).parts[-3:] != Path(options.resume).parts[-3:]:
            raise UserError(f"started from {started_from}, which is not how {stage.resume} ends now: {way_out}")
        if stage.source is not None and not self.plans[stage.source].is_finished:
            raise UserError(f"was fed by a state of {stage.source}, which has not come to its end now: {way_out}")
        if options.source != AUTO and fingerprint_of_source(options) != saved["run"]["source"].get("fingerprint"):
            raise UserError(
                f"was fed by something else than what {stage.source or options.source or 'noise'} is now: {way_out}"
            )

    def check_table(self, resolved: Resolved) -> None:
        """What the stage will be judged by can be computed. Raises `UserError`."""
        try:
            check_metrics(self.recipe.table, resolved.config, resolved.num_images)
        except UserError as error:
            raise error.moved("--metrics", "table") from error

    def run(self) -> int:
        """Train what is left, judge every stage, and put the end of the cascade together; the exit code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "recipe.yaml") as file:
            file.write(self.recipe.path.read_bytes())
        report = CascadeReport(self.folder, self.recipe)
        for number, stage in enumerate(self.recipe.stages, 1):
            status = self.run_stage(number, stage) or self.judge(stage, report)
            if status != 0:
                return status
        last = self.plans[self.recipe.stages[-1].name]
        report.finish(Path(last.snapshot), last.resolved.config.device)
        return 0

    def judge(self, stage: Stage, report: CascadeReport) -> int:
        """Compute the stage's row of the table, unless it is known; the exit code."""
        plan = self.plans[stage.name]
        with self.naming(stage), StopSignal() as stop:
            is_done = report.add(stage, plan.resolved.config, Path(plan.snapshot), lambda: not stop.is_asked)
        if is_done and not stop.is_asked:
            return 0
        print(f"Stopped; {self.way_on(f'after the training of stage {stage.name}')}.")
        return STOPPED

    def way_on(self, where: str) -> str:
        """What continues a cascade that was stopped."""
        return f"the same command (--cascade={self.recipe.path}) goes on {where}"

    def run_stage(self, number: int, stage: Stage) -> int:
        """Train a stage to its end, unless it is there already; the exit code."""
        plan = self.plans[stage.name]
        title = f"Stage {number} of {len(self.recipe.stages)}, {stage.name}"
        if plan.is_finished:
            print(f"{title}: {plan.state_line}")
            return 0
        self.forget_expected(stage)
        plan = self.plan(stage)  # again, on top of what the earlier stages have become
        print(f"{title}:")
        plan.resolved.print_summary()
        with self.naming(stage):
            status = self.start(plan.resolved.config, plan.point, self.way_on(f"in stage {number}, {stage.name}"))
        if status == 0:
            self.forget_expected(stage)
            self.plan(stage)
        return status

    def forget_expected(self, stage: Stage) -> None:
        self.expected.pop(self.plans[stage.name].snapshot, None)

    @contextlib.contextmanager
    def naming(self, stage: Stage) -> Iterator[None]:
        """Put recipe and stage before the message of a `UserError` raised inside the block."""
        try:
            yield
        except UserError as error:
            message = str(error)
            start = f"--cascade={self.recipe.path}: stage {stage.name}"
            raise UserError(message if message.startswith(start) else f"{start}: {message}") from error


def check_given(given: Mapping[str, Any]) -> dict[str, str]:
    """What was typed beside --cascade, as text, without --outdir. Raises `UserError` for what belongs into the recipe."""
    if distributed.is_launched() and distributed.get_world_size() > 1:
        raise UserError("--cascade: does not run under torchrun yet; start it with --gpus=N on one machine")
    for name in sorted(given.keys() - FROM_COMMAND_LINE):
        if name == "resume" and given[name] == LATEST:
            continue  # that is what a cascade does anyway
        known = ", ".join(flag_name(known) for known in sorted(FROM_COMMAND_LINE))
        raise UserError(
            f"{flag_name(name)}: belongs into the recipe of --cascade, under defaults or a stage; beside it go only {known}"
        )
    texts = {name: str(value) for name, value in given.items() if name not in ("outdir", "resume")}
    return texts | ({"batch_gpu": "auto"} if "batch_gpu" in given and given["batch_gpu"] is None else {})


def as_flags(options: TrainingOptions, run_dir: Path) -> dict[str, Any]:
    """The options as `find_resume_point` takes them, for continuing a run."""
    return {**vars(options), "resume": LATEST, "outdir": str(run_dir)}


def names_given(options: TrainingOptions) -> set[str]:
    """All options count as given, but that what --source=auto has chosen stays chosen."""
    chosen = {"source", "source_pool"} if options.source == AUTO else set()
    return FLAGS.keys() - {"resume", "outdir", "desc"} - chosen


def fingerprint_of_source(options: TrainingOptions) -> str | None:
    """The fingerprint of what feeds a stage; None for noise."""
    if options.source in (None, NOISE) or options.data is None:
        return None
    if is_snapshot(options.source):
        return fingerprint_file(options.source)
    with contextlib.closing(open_files(options.source)) as files:
        return content_fingerprint(files)


def last_snapshot(run_dir: Path) -> str:
    snapshots = numbered(run_dir, SNAPSHOT_PATTERN)
    if not snapshots:
        raise UserError(f"{run_dir} is complete, and its network-snapshot-….pkl is missing; bring it back")
    return str(snapshots[0])


def build_on_meta(config: TrainingConfig) -> dict[str, torch.nn.Module]:
    """The networks of a run without memory for their weights; what their constructors refuse is refused early."""
    with torch.device("meta"):
        return {"G": persistence.construct(**config.G_kwargs), "D": persistence.construct(**config.D_kwargs)}


def expected_contents(config: TrainingConfig, networks: Mapping[str, torch.nn.Module]) -> dict[str, Any]:
    """What the snapshot of a run will hold, as far as it is known before it is trained."""
    return {
        "G": networks["G"],
        "D": networks["D"],
        "G_ema": networks["G"],
        "source": config.source.foreseen(),
        "augment_pipe": build_augmentation(config.augpipe_kwargs),
        "training_set_kwargs": config.training_set_kwargs,
        "meta": {"cfg": config.cfg, "cur_nimg": round(config.total_kimg * 1000)},
    }
