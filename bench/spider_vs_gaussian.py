"""Does it pay off? Trainings that differ in one thing, with the same seeds and the same budget, and what came of them.

\b
# A friendly source, its normalisations, core-sets, against plain noise; what stands behind -- goes to every training
python bench/spider_vs_gaussian.py --outdir=out/cifar --kimg=20 --snapshots=10 --seeds=0,1,2 \\
    --challenger="images: --source=tinyimagenet.zip" \\
    --challenger="whitened: --source=tinyimagenet.zip --source-norm=whiten" \\
    --challenger="core-sets: --source=tinyimagenet.zip --coreset=prior,target" \\
    -- --cfg=stylegan2 --data=cifar10.zip --cbase=1024 --cmax=32 --z-dim=64 --w-dim=64 --map-depth=2 --batch=32

\b
# A cascade, with and without stage one's weights: {stage1} is the snapshot of a stage one trained with the same seed
python bench/spider_vs_gaussian.py --outdir=out/cascade --kimg=20 --snapshots=10 --seeds=0,1,2 \\
    --stage-one="--data=tinyimagenet32.zip --kimg=20" \\
    --challenger="images of stage one: --source={stage1}" \\
    --challenger="its weights: --resume={stage1}" \\
    --challenger="both: --source={stage1} --resume={stage1}" \\
    -- --cfg=stylegan2 --data=cifar10.zip --cbase=1024 --cmax=32 --z-dim=64 --w-dim=64 --map-depth=2 --batch=32

Trainings that are finished are not run again, one that was stopped goes on where it was: the same command continues, and
a larger --kimg makes all of them longer. After each one, results.json and curves.png in --outdir are those of all so far.
Iterations do not count those of stage one and of --pretrain; processor seconds count everything but the measuring. A
challenger with a --kimg (and --tick) of its own may be given what costs the baseline as many processor seconds. What starts
from weights (--resume) is judged by an average of weights whose half-life is 0.3 kimg times the batch size and does not begin
short, as that of new runs does: give it several of these.
"""

import itertools
import json
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dnnlib.cli
from bench.common import describe_machine, save_result
from dnnlib.errors import UserError
from metrics import metric_main
from torch_utils.launcher import STOPPED
from training.checkpoints.state_file import OPTIONS_FILE, SNAPSHOT_PATTERN, STATS, newest_run, numbered

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "baseline"
STAGE_ONE = "stage one"
ARGUMENTS_FILE = "arguments.json"
LINES_SHOWN = 5  # of the log of a training that failed

SPENT = ("Progress/kimg", "Timing/cpu_sec")  # of a tick, in stats.jsonl
Curve = list[tuple[float, float]]  # (kimg, score, the lower the better)


@dataclass(frozen=True)
class Run:
    """One training: who trains, with which seed, where, and how train.py is called (--outdir, --seed, length left out)."""

    name: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    kimg: float


def parse_challengers(context: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
    challengers = {}
    for value in values:
        name, colon, arguments = value.partition(":")
        name = name.strip()
        if (
            not colon
            or not name
            or name in (BASELINE, STAGE_ONE)
            or name in challengers
            or not name[0].isalnum()
            or "/" in name
        ):
            raise click.BadParameter(
                f"{value!r} is no 'NAME: FLAGS' with a name of its own ({BASELINE} and {STAGE_ONE} are taken)",
                context,
                param,
            )
        challengers[name] = shlex.split(arguments)
    return challengers


def parse_seeds(context: click.Context, param: click.Parameter, value: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers like 0,1,2", context, param) from None


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 110})
@click.option("--outdir", help="Where the trainings and the results go", metavar="DIR", required=True)
@click.option(
    "--challenger", "challengers", help="'NAME: FLAGS OF TRAIN.PY'", multiple=True, callback=parse_challengers
)
@click.option("--baseline", help="Flags of the baseline  [default: none, plain noise]", default="", show_default=False)
@click.option("--stage-one", help="Flags of a training before all others, whose snapshot is {stage1}", metavar="FLAGS")
@click.option("--kimg", type=click.FloatRange(min=0, min_open=True), required=True)
@click.option("--snapshots", help="At which all are measured", type=click.IntRange(min=1), default=10)
@click.option("--seeds", callback=parse_seeds, default="0,1,2")
@click.option("--metrics", help="Measured at every snapshot", default="fid2k_full,csid2k_full")
@click.option("--detector", default="tiny")
@click.option("--only", help="Run these only (NAME or NAME/SEED); the others count as far as they are", multiple=True)
@click.option("--name", help="Of the file in bench/results; without it there is none")
@click.argument("shared", nargs=-1, type=click.UNPROCESSED)
def main(
    outdir: str,
    challengers: dict[str, list[str]],
    baseline: str,
    stage_one: str | None,
    kimg: float,
    snapshots: int,
    seeds: list[int],
    metrics: str,
    detector: str,
    only: tuple[str, ...],
    name: str | None,
    shared: tuple[str, ...],
) -> None:
    check_shared(shared)
    measured = [
        f"--metrics={metrics}",
        f"--detector={detector}",
        f"--tick={kimg / snapshots:g}",
        "--snap=1",
        "--keep=1",
    ]
    contenders = {BASELINE: shlex.split(baseline), **challengers}
    setting = {"shared": list(shared), "contenders": contenders, "stage_one": stage_one, "kimg": kimg, "seeds": seeds}
    runs = list(plan(Path(outdir), contenders, stage_one, kimg, seeds, [*shared, *measured]))
    summaries = {}
    for run in runs:
        if is_wanted(run, only):
            train(run, {"{stage1}": str(last_snapshot(runs, run.seed))} if needs_stage_one(run) else {})
            summaries = write_results(runs, metrics.split(","), setting, Path(outdir), name)
    for metric, summary in summaries.items():
        print("\n".join(table(metric, summary)))
    print(f"The curves: {Path(outdir, 'curves.png')}")


def check_shared(flags: tuple[str, ...]) -> None:
    for flag in flags:
        if not flag.startswith("--") or "=" not in flag:
            raise UserError(f"{flag}: behind -- goes what all trainings share, each as --flag=value")


# The trainings.


def plan(
    outdir: Path,
    contenders: dict[str, list[str]],
    stage_one: str | None,
    kimg: float,
    seeds: list[int],
    shared: list[str],
) -> Iterator[Run]:
    """Seed by seed, so that pairs are complete early; stage one before those that it feeds."""
    if stage_one is None and any("{stage1}" in argument for arguments in contenders.values() for argument in arguments):
        raise UserError("--challenger: {stage1} is what --stage-one=FLAGS trains; give that, too")
    for seed in seeds:
        if stage_one is not None:
            # The shared flags come first: its own --data and --kimg win. It is judged by nobody.
            own = [
                argument for argument in shared if not argument.startswith(("--metrics", "--data", "--tick", "--snap="))
            ]
            yield Run(STAGE_ONE, seed, outdir / STAGE_ONE / str(seed), (*own, *shlex.split(stage_one)), kimg)
        for name, arguments in contenders.items():
            yield Run(name, seed, outdir / name / str(seed), (*shared, *arguments), kimg)


def is_wanted(run: Run, only: tuple[str, ...]) -> bool:
    return not only or run.name in only or f"{run.name}/{run.seed}" in only


def needs_stage_one(run: Run) -> bool:
    return any("{stage1}" in argument for argument in run.arguments)


def last_snapshot(runs: list[Run], seed: int) -> Path:
    folder = next(run.folder for run in runs if run.name == STAGE_ONE and run.seed == seed)
    found = [numbered(run_dir, SNAPSHOT_PATTERN)[:1] for run_dir in sorted(folder.glob("*/"))]
    if not any(found):
        raise UserError(f"{folder}: has no snapshot yet; run {STAGE_ONE}/{seed} first (leave --only out)")
    return [path for newest in found for path in newest][-1]


def train(run: Run, words: dict[str, str]) -> None:
    """Run train.py until the budget is used up; nothing where that is so already. Raises `UserError` where it fails.

    words: what stands for placeholders in the arguments.
    """
    check_arguments(run)
    command = [sys.executable, str(ROOT / "train.py"), *next_arguments(run, words)]
    if is_finished(run):
        print(f"{run.name}, seed {run.seed}: finished already")
        return
    print(f"{run.name}, seed {run.seed}: {shlex.join(command[2:])}", flush=True)
    log = run.folder / "output.txt"
    with open(log, "ab") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if status == STOPPED:
        raise UserError("stopped; the same command continues")
    if status != 0:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise UserError(f"{run.name}, seed {run.seed} failed: {' | '.join(lines[-1:])} (all of it: {log})")


def check_arguments(run: Run) -> None:
    """What was run in a folder stays what is run there; only its length may grow."""
    path = run.folder / ARGUMENTS_FILE
    wanted = [argument for argument in run.arguments if not argument.startswith("--tick=")]
    if path.is_file() and json.loads(path.read_text()) != wanted:
        raise UserError(f"{run.folder}: holds a training with other flags ({path}); use another --outdir or name")
    run.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")


def next_arguments(run: Run, words: dict[str, str]) -> list[str]:
    """A new training, or the exact continuation of the one in the folder."""
    if newest_run(run.folder) is not None:
        return ["--resume=latest", f"--outdir={run.folder}", f"--kimg={stated_kimg(run):g}"]
    arguments = list(run.arguments)
    for word, value in words.items():
        arguments = [argument.replace(word, value) for argument in arguments]
    return [f"--outdir={run.folder}", f"--seed={run.seed}", f"--kimg={run.kimg:g}", *arguments]


def stated_kimg(run: Run) -> float:
    """The budget, or the run's own --kimg (of stage one)."""
    own = [argument.removeprefix("--kimg=") for argument in run.arguments if argument.startswith("--kimg=")]
    return float(own[-1]) if own else run.kimg


def is_finished(run: Run) -> bool:
    run_dir = newest_run(run.folder)
    if run_dir is None:
        return False
    return json.loads((run_dir / OPTIONS_FILE).read_text()).get("finished_kimg", -1) >= stated_kimg(run)


# What came of them.


def write_results(
    runs: list[Run], metrics: list[str], setting: dict[str, Any], outdir: Path, name: str | None
) -> dict[str, dict[str, Any]]:
    """results.json and curves.png, from all that there is so far; metric -> what `summarise` says."""
    curves = {metric: read_curves(runs, metric) for metric in metrics}
    if not all(curves.values()):  # only stage one has been trained
        return {}
    seconds = read_seconds(runs)
    timed = {metric: in_seconds(of_metric, seconds) for metric, of_metric in curves.items()}
    summaries = {metric: summarise(curves[metric], timed[metric]) for metric in metrics}
    result = {"setting": setting, "summaries": summaries, "curves": curves, "curves_in_cpu_seconds": timed}
    result["machine"] = describe_machine()
    result = without_infinities(result)
    (outdir / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    if name is not None:
        save_result(f"spider_vs_gaussian_{name}", result)
    draw(curves, outdir / "curves.png")
    return summaries


def without_infinities(value: Any) -> Any:
    """Plain data for JSON, which has no infinities: they become null."""
    if isinstance(value, dict):
        return {key: without_infinities(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_curves(runs: list[Run], metric: str) -> dict[str, dict[int, Curve]]:
    """Contender -> seed -> curve, of the runs that have begun to be measured."""
    curves: dict[str, dict[int, Curve]] = {}
    for run in runs:
        run_dir = newest_run(run.folder)
        path = None if run_dir is None else metric_main.report_path(run_dir, metric)
        if path is not None and path.is_file() and run.name != STAGE_ONE:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            curves.setdefault(run.name, {})[run.seed] = [(line["kimg"], metric_main.score(line)) for line in lines]
    return curves


def read_seconds(runs: list[Run]) -> dict[str, dict[int, Curve]]:
    """Contender -> seed -> (kimg, processor seconds), with those of the stage one that feeds it."""
    seconds: dict[str, dict[int, Curve]] = {}
    for run in runs:
        run_dir = newest_run(run.folder)
        path = None if run_dir is None else run_dir / STATS
        if path is not None and path.is_file():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            means = [{name: line[name]["mean"] for name in SPENT if name in line} for line in lines]
            before = seconds.get(STAGE_ONE, {}).get(run.seed, []) if needs_stage_one(run) else [(0.0, 0.0)]
            if not before:  # it was trained before processor seconds were counted
                continue
            earlier = before[-1][1]
            seconds.setdefault(run.name, {})[run.seed] = [
                (mean[SPENT[0]], earlier + mean[SPENT[1]]) for mean in means if len(mean) == len(SPENT)
            ]
    return seconds


def in_seconds(
    curves: dict[str, dict[int, Curve]], seconds: dict[str, dict[int, Curve]]
) -> dict[str, dict[int, Curve]]:
    """The same curves over processor seconds."""
    timed: dict[str, dict[int, Curve]] = {}
    for name, by_seed in curves.items():
        for seed, curve in by_seed.items():
            at = {round(kimg, 3): spent for kimg, spent in seconds.get(name, {}).get(seed, [])}
            timed.setdefault(name, {})[seed] = [(at[round(k, 3)], value) for k, value in curve if round(k, 3) in at]
    return timed


def first_reach(curve: Curve, level: float) -> float:
    """kimg at which a curve, linear between its points, is at or below a level for the first time; inf if never."""
    for index, (kimg, value) in enumerate(curve):
        if value <= level:
            if index == 0 or not math.isfinite(curve[index - 1][1]):
                return kimg
            kimg_before, before = curve[index - 1]
            return kimg_before + (kimg - kimg_before) * (before - level) / (before - value)
    return math.inf


def summarise(curves: dict[str, dict[int, Curve]], timed: dict[str, dict[int, Curve]]) -> dict[str, dict[str, Any]]:
    """Sum up each contender, by seed: final and best score; the shares of the baseline's iterations and of its processor
    seconds, with the same seed, that it took to reach the baseline's best (inf: not within the budget); its score after as
    many seconds as the baseline's whole training took, or what it had before."""
    summary = {}
    for name, by_seed in curves.items():
        row: dict[str, dict[int, float]] = {
            "final": {seed: curve[-1][1] for seed, curve in by_seed.items()},
            "best": {seed: min(value for _, value in curve) for seed, curve in by_seed.items()},
            "iterations": {},
            "cpu_seconds": {},
            "at_equal_seconds": {},
        }
        for seed in by_seed.keys() & curves.get(BASELINE, {}).keys():
            row["iterations"][seed] = share_to_reach(curves[BASELINE][seed], by_seed[seed])
            whole, own = timed[BASELINE][seed], timed[name][seed]
            if whole and own:
                row["cpu_seconds"][seed] = share_to_reach(whole, own)
                row["at_equal_seconds"][seed] = value_at(own, whole[-1][0])
        summary[name] = row
    return summary


def share_to_reach(baseline: Curve, curve: Curve) -> float:
    """Effort to reach the baseline's best, over the baseline's own: 1 is no gain, 0.2 the factor of five."""
    best = min(value for _, value in baseline)
    return first_reach(curve, best) / first_reach(baseline, best)


def value_at(curve: Curve, effort: float) -> float:
    """Score after so much effort, linear between the points; the first before them, the last behind them."""
    points = sorted(curve)
    if effort <= points[0][0]:
        return points[0][1]
    for (before, start), (after, end) in itertools.pairwise(points):
        if effort <= after:
            return start + (end - start) * (effort - before) / (after - before)
    return points[-1][1]


def table(metric: str, summary: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield (
        f"{metric:<22} {'seeds':>5} {'final':>14} {'best':>14} {'at equal CPU time':>18}   "
        "to the baseline's best: iterations | CPU seconds (of its own)"
    )
    for name, row in summary.items():
        scores = f"{mean_and_std(row['final']):>14} {mean_and_std(row['best']):>14} "
        scores += f"{mean_and_std(row['at_equal_seconds']):>18}"
        spreads = [spread_of(list(row[key].values())) for key in ("iterations", "cpu_seconds")]
        yield f"  {name:<20} {len(row['final']):>5} {scores}   {' | '.join(spreads)}"


def spread_of(shares: list[float]) -> str:
    """Median and range of shares, and how many never got there."""
    if not shares:
        return "-"
    missed = sum(not math.isfinite(share) for share in shares)
    note = f" ({missed} of {len(shares)})" if missed else ""
    return f"median {shown(statistics.median(shares))}, {shown(min(shares))} to {shown(max(shares))}{note}"


def shown(share: float) -> str:
    return f"{share:.2f}" if math.isfinite(share) else "never"


def mean_and_std(by_seed: dict[int, float]) -> str:
    values = list(by_seed.values())
    if not values:
        return "-"
    std = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{std}"


def draw(curves: dict[str, dict[str, dict[int, Curve]]], path: Path) -> None:
    """A panel for each metric: thin lines are seeds, thick ones their mean where all seeds were measured."""
    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves) + 3, 4.2), layout="constrained", squeeze=False)
    for panel, (metric, contenders) in zip(axes.flat, curves.items(), strict=True):
        for number, (name, by_seed) in enumerate(contenders.items()):
            style = {"color": "black" if name == BASELINE else f"C{(number - 1) % 10}"}
            style |= {"linestyle": "--" if number > 10 else "-"}
            for curve in by_seed.values():
                panel.plot(*zip(*curve, strict=True), **style, linewidth=0.7, alpha=0.5)
            panel.plot(*zip(*mean_curve(by_seed), strict=True), **style, linewidth=2.2, label=name)
        panel.set(title=f"{metric} (the lower the better)", xlabel="kimg", yscale="log")
        panel.grid(alpha=0.3, which="both")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def mean_curve(by_seed: dict[int, Curve]) -> Curve:
    points = [dict(curve) for curve in by_seed.values()]
    common = sorted(set.intersection(*(set(point) for point in points)))
    return [(kimg, statistics.mean(point[kimg] for point in points)) for kimg in common]


if __name__ == "__main__":
    dnnlib.cli.run(main)
