"""Where an exact resume continues: the run, its newest intact state, its options, and what may differ from them."""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.files import remove_parts, write_text
from training.checkpoints.snapshot import images_seen
from training.checkpoints.state_file import (
    BEST,
    OPTIONS_FILE,
    SNAPSHOT_PATTERN,
    STATE_PATTERN,
    STATS,
    images_of,
    newest_intact_state,
    newest_run,
    numbered,
)
from training.config.flags import OnResume, flag_name
from training.config.option_paths import absolute_options
from training.config.options import FLAGS, TYPES, TrainingOptions
from training.config.presets import PRESETS
from training.config.run_config import FREE_FIELDS, TrainingConfig, as_data
from training.config.source_specs import SourceSpec, from_data
from training.settings import LATEST
from training.sources.prior_features import NoPrior, PriorSpec, prior_from_data

DAMAGED = ".damaged"  # ending of a state that could not be continued

# What runs meant that are older than a field.
UNSAID = {
    one.name: as_data(one.default if one.default_factory is dataclasses.MISSING else one.default_factory())
    for one in dataclasses.fields(TrainingConfig)
    if one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
}


@dataclass
class ResumePoint:
    """A run that is continued."""

    run_dir: Path
    state: Path | None
    """Its training state; None if it ended before the first one: it starts again from its beginning, in its folder."""
    options: TrainingOptions
    """Those of the run, with what was given now in their place."""
    config: Mapping[str, Any]
    """The configuration that it had."""
    notes: list[str] = field(default_factory=list)
    """What is not as it was, for the log."""

    @property
    def source(self) -> SourceSpec:
        """What feeds it."""
        return from_data(self.config["source"])

    @property
    def prior(self) -> PriorSpec | NoPrior:
        """What it is conditioned on."""
        return prior_from_data(self.config.get("prior"))

    def check(self, config: TrainingConfig) -> None:
        """Raise `UserError` where the new configuration would be another run."""
        now, before = plain(config.as_dict()), self.config
        if now["data_fingerprint"] != before.get("data_fingerprint"):
            raise UserError(
                f"--data: does not hold the images that the run in {self.run_dir} was started with; bring them back, or "
                "start a new run with --resume=network-snapshot-….pkl"
            )
        for name in now.keys() - FREE_FIELDS:
            if changes := differences(name, before.get(name, UNSAID.get(name)), now[name]):
                raise UserError(
                    f"--resume: this would be another run than the one in {self.run_dir} ({', '.join(changes)}); start a "
                    "new one from its snapshot with --resume=network-snapshot-….pkl"
                )


def find_resume_point(options: Mapping[str, Any], given: set[str]) -> ResumePoint | None:
    """What `--resume=latest` (in `--outdir`, or a run folder) or `--resume=RUN-FOLDER` continues.

    options: values of all flags by name; given: those that the user typed. None where no exact resume is asked for, or
    where `latest` finds no run yet. Raises `UserError` for flags that contradict the run.
    """
    resume = options["resume"]
    if resume is None or (resume != LATEST and not Path(resume).is_dir()):
        return None
    run_dir = newest_run(Path(options["outdir"] if resume == LATEST else resume))
    if run_dir is None:
        if resume != LATEST:
            raise UserError(f"--resume={resume}: is no run folder (there is no {OPTIONS_FILE} in it)")
        return None
    saved = read_options(run_dir)
    state, complaints = newest_intact_state(run_dir)
    merged, notes = merge(saved["options"], options, given, run_dir)
    path = saved["source"].get("path")
    if path is not None and "source" not in given:
        merged |= {"source": path, "source_pool": ()}  # what --source=auto chose stays chosen
    merged |= {"outdir": str(run_dir.parent)}
    point = ResumePoint(run_dir, state, TrainingOptions(**merged), saved, [*complaints, *notes])
    if state is None and not is_finished(point) and (snapshots := numbered(run_dir, SNAPSHOT_PATTERN)):
        raise UserError(
            f"--resume: {run_dir} has snapshots and no training state to go on from; bring the training-state-*.pt back, or "
            f"start a new run with --resume={snapshots[0]}"
        )
    return point


def is_finished(point: ResumePoint) -> bool:
    """Whether nothing is left to do: the run came to its end, which is not further away now."""
    return point.config.get("finished_kimg", -1) >= point.options.kimg


def read_options(run_dir: Path) -> dict[str, Any]:
    path = run_dir / OPTIONS_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved.get("training_set_kwargs", {}).pop("class_name", None)  # for scripts of other people, see official_fields
        from_data(saved["source"])
        prior_from_data(saved.get("prior"))
        is_ours = (
            are_options(saved["options"])
            and isinstance(saved["desc"], str)
            and isinstance(saved.get("finished_kimg", 0), int | float)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--resume: {path} cannot be read ({type(error).__name__}); start a new run from a snapshot"
        ) from error
    if not is_ours:
        raise UserError(
            f"--resume: {path} is not what this version writes; start a new run from a snapshot (--resume=PKL)"
        )
    return saved


def are_options(saved: Mapping[str, Any]) -> bool:
    """Whether these are the options of a run, each of its type, as they come from JSON."""
    kinds = {name: typing.get_args(kind) or (kind,) for name, kind in TYPES.items()}
    if "cfg" not in saved or not saved.keys() <= kinds.keys():
        return False
    return all(is_of(value, kinds[name]) for name, value in saved.items())


def is_of(value: Any, kinds: tuple[Any, ...]) -> bool:
    """kinds: what an annotation allows; of tuple[str, ...] typing leaves `str, ...`, and JSON makes it a list."""
    if kinds[-1] is Ellipsis:
        return isinstance(value, list) and all(isinstance(part, kinds[0]) for part in value)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def merge(
    saved: Mapping[str, Any], now: Mapping[str, Any], given: set[str], run_dir: Path
) -> tuple[dict[str, Any], list[str]]:
    """The run's options with those given now, and notes on what changes its numbers."""
    merged = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    notes = []
    whole_before, whole_now = absolute_options(merged), absolute_options(now)
    for name in sorted(given & set(now)):
        before, value = merged.get(name), now[name]
        if name in ("resume", "outdir") or whole_before.get(name) == whole_now[name]:
            continue
        notes += change_of(name, before, value, run_dir, PRESETS[str(merged["cfg"])].has_batch_norm)
        merged[name] = value
    return merged, notes


def change_of(name: str, before: Any, value: Any, run_dir: Path, has_batch_norm: bool) -> list[str]:
    """What to note of an option that has another value now. Raises `UserError` where it must agree."""
    flag = FLAGS[name]
    here = f"{flag_name(name)}: {shown(value)}"
    match flag.on_resume:
        case OnResume.FREE:
            return [f"{here} from here on (so far: {shown(before)}): {flag.note}"] if flag.note else []
        case OnResume.TUNES:
            return [f"{here} from here on (so far: {shown(before)})"]
        case OnResume.ROUNDS:
            sees_others = has_batch_norm and name in ("gpus", "batch_gpu")
            effect = "batch norm sees other micro-batches" if sees_others else "equal up to rounding, not to the bit"
            return [f"{here} instead of {shown(before)}: {effect}"]
    raise UserError(
        f"{flag_name(name)}={shown(value)}: the run in {run_dir} has {shown(before)}; leave the flag out to continue it, name "
        "another run with --outdir, or leave out --resume for a new one"
    )


def shown(value: Any) -> str:
    return (",".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def differences(name: str, before: Any, now: Any) -> list[str]:
    """What differs between two values of JSON, a phrase each. Paths may: what they hold is checked by fingerprints."""
    if name.endswith((".path", ".why", "prior.weights")) or before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [change for key in keys for change in differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [f"{name}: {before}, now {now}"]


def plain(value: Any) -> Any:
    """The value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def set_aside_damaged(run_dir: Path, state: Path) -> None:
    """States newer than the one that is continued are damaged: rotation must not keep them in place of good ones."""
    for path in numbered(run_dir, STATE_PATTERN):
        if path.name == state.name:
            return
        path.replace(path.with_name(path.name + DAMAGED))


def set_aside_later(run_dir: Path, cur_nimg: int) -> None:
    """Rename snapshots of the time after the state that is continued.

    What the run makes of that time now may be another network (with another --gamma, on another machine), and two networks
    must not take turns under one name, nor count as the newest when older ones are removed.
    """
    for path in run_dir.iterdir():
        match = SNAPSHOT_PATTERN.fullmatch(path.name)
        is_later = match is not None and images_of(match) > cur_nimg
        if is_later or (path.name == BEST and (images_seen(path) or 0) > cur_nimg):
            aside = path.with_name(f"earlier-{path.name}")
            while aside.exists():
                aside = aside.with_name(f"earlier-{aside.name}")
            path.replace(aside)
            print(f"{path.name} is of the time after the state that is continued; it is {aside.name} now")


def rewind_files(run_dir: Path, num_ticks: int, kimg: float, metrics_due: Sequence[str]) -> None:
    """Take back what the run's logs say of the time after its state; delete half-written files.

    metrics_due: those that are computed anew for the state itself.
    """
    remove_parts(run_dir)
    keep_lines(run_dir / STATS, lambda index, line: index < num_ticks)
    for path in run_dir.glob("metric-*.jsonl"):
        is_due = path.stem.removeprefix("metric-") in metrics_due
        keep_lines(path, lambda index, line, is_due=is_due: is_before(line, kimg, is_due))


def is_before(result: Mapping[str, Any], kimg: float, evaluation_due: bool) -> bool:
    """Whether a result is of the time before a state, or of another program that does not say of which time."""
    measured = result.get("kimg", -1)
    return measured < kimg or (measured == kimg and ("by" in result or not evaluation_due))


def keep_lines(path: Path, is_kept: Any) -> None:
    """Lines of JSON that stay; one that was cut short goes, and all after it."""
    if not path.is_file():
        return
    before, kept = path.read_text(encoding="utf-8", errors="replace"), []
    for index, text in enumerate(before.splitlines()):
        try:
            if is_kept(index, json.loads(text)):
                kept.append(text + "\n")
        except (ValueError, KeyError, TypeError):
            break
    if "".join(kept) != before:  # a full disk must not cost what was there
        write_text(path, "".join(kept))
