"""Several processes, each with a network card of its own: bytes on the wire, step times, and what the overlap hides.

python bench/scaling.py --cfg=stylegan2 --res=32 --cbase=4096 --cmax=128 --processes=1,2,4 --rates=0,1000,300

Every process runs the real training step in a network namespace; virtual cards and a bridge connect them, `tc` limits their
rate (0: no limit). Needs Linux, root and iproute2 (`apt-get install iproute2`). The processes share the processors, so
compare columns of one row: without exchange, exchange after the backward pass, exchange during it. What is left of the
exchange when the backward pass is over is taken from the rank that comes last to it, which waits for no other.
"""

import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dnnlib.cli
from bench.common import describe_machine, save_result, synthetic_run
from dnnlib.errors import UserError
from torch_utils import distributed, gradient_reducer
from training.run.step import Phase, TrainingStep

CARD = "eth0"
SUBNET = "10.77.0"
PORT = 29477
GROUPS = itertools.count()
MODES = ("none", "after", "during")  # when gradients are exchanged, seen from the backward pass


def int_list(context: click.Context, param: click.Parameter, value: str) -> list[int]:
    return [int(part) for part in value.split(",")]


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--cfg", type=click.Choice(["stylegan2", "stylegan3-t", "stylegan3-r"]), default="stylegan2")
@click.option("--res", default=32)
@click.option("--batch", help="Images per process", default=4)
@click.option("--cbase", default=4096)
@click.option("--cmax", default=128)
@click.option("--processes", help="How many, one measurement each", callback=int_list, default="1,2,4")
@click.option("--rates", help="Mbit/s of each card; 0: no limit", callback=int_list, default="0,1000,300")
@click.option("--repeats", help="Of each phase, of which the median counts", default=7)
@click.option("--bucket-mb", help="Size of the buckets  [default: the program's]", type=float)
@click.option("--name", help="Of the file in bench/results", default="scaling")
@click.option("--worker", is_flag=True, hidden=True)
def main(processes: list[int], rates: list[int], name: str, worker: bool, **setting: Any) -> None:
    if setting["bucket_mb"] is not None:
        gradient_reducer.SMALLEST_BUCKET = gradient_reducer.LARGEST_BUCKET = int(setting["bucket_mb"] * 2**20)
    if worker:
        run_worker(**setting)
        return
    check_machine()
    rows = []
    print_header(setting)
    for num in processes:
        for rate in rates if num > 1 else [0]:
            rows.append({"processes": num, "mbit_per_sec": rate, **measure_group(num, rate)})
            print_row(rows[-1])
    save_result(name, {"setting": setting, "rows": rows, "machine": describe_machine()})


def check_machine() -> None:
    """Raise `UserError` where namespaces cannot be made."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise UserError(f"bench/scaling.py: {' and '.join(missing)} missing: apt-get install iproute2 (Linux only)")
    with machines(1, 0):
        pass


# Machines on one machine


@contextlib.contextmanager
def machines(num: int, rate: int) -> Iterator[list[str]]:
    """Names of namespaces with a card each, on one bridge. Raises `UserError`."""
    tag = f"sg{os.getpid() % 100000}{next(GROUPS)}"  # the system takes its time to remove those of the last group
    names = [f"{tag}n{index}" for index in range(num)]
    with contextlib.ExitStack() as undo:
        ip("link", "add", f"{tag}br", "type", "bridge")
        undo.callback(ip, "link", "del", f"{tag}br")
        ip("link", "set", f"{tag}br", "up")
        for index, name in enumerate(names):
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", CARD, "netns", name)
            ip("link", "set", f"{name}v", "master", f"{tag}br", "up")
            ip("-n", name, "addr", "add", f"{SUBNET}.{index + 1}/24", "dev", CARD)
            ip("-n", name, "link", "set", CARD, "up")
            ip("-n", name, "link", "set", "lo", "up")
            if rate > 0:
                limit = ["tbf", "rate", f"{rate}mbit", "burst", "256kb", "latency", "100ms"]
                command("tc", "-n", name, "qdisc", "add", "dev", CARD, "root", *limit)
        yield names


def ip(*args: str) -> None:
    command("ip", *args)


def command(*args: str) -> None:
    result = subprocess.run(args, capture_output=True, text=True)
    if result.returncode != 0:
        why = dnnlib.cli.one_line(result.stderr) or f"exit code {result.returncode}"
        raise UserError(f"bench/scaling.py: needs root and network namespaces ({' '.join(args)}: {why})")


def measure_group(num: int, rate: int) -> dict[str, Any]:
    """What rank 0 of `num` processes, each in its own namespace, found."""
    with machines(num, rate) as names:
        running = []
        for rank, name in enumerate(names):
            environment = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": str(num),
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": f"{SUBNET}.1",
                "MASTER_PORT": str(PORT),
                "GLOO_SOCKET_IFNAME": CARD,
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            }
            inside = ["ip", "netns", "exec", name, sys.executable, *sys.argv, "--worker"]
            running.append(subprocess.Popen(inside, env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in running]
    if any(process.returncode != 0 for process in running):
        raise UserError(f"bench/scaling.py: one of the {num} processes failed; what it printed is above")
    return json.loads(outputs[0].splitlines()[-1])


# One of the processes


def run_worker(cfg: str, res: int, batch: int, cbase: int, cmax: int, repeats: int, **_: Any) -> None:
    """Measure every phase in every mode, and print it as JSON."""
    distributed.init()
    total = batch * distributed.get_world_size()
    with synthetic_run(res, total, cfg=cfg, cbase=cbase, cmax=cmax, device="cpu", fp32=True) as run:
        batches = run.step.batches.rounds(
            [phase.name for phase in run.step.phases], run.images[:batch], run.labels[:batch]
        )
        phases = {phase.name: measure_phase(run.step, phase, batches, repeats) for phase in run.step.phases}
    result = {"phases": phases, **per_step(phases)}
    distributed.print0(json.dumps(result))
    distributed.barrier()
    distributed.shutdown()


def measure_phase(step: TrainingStep, phase: Phase, batches: list[Any], repeats: int) -> dict[str, Any]:
    """Medians in each mode, taken in turn: seconds of the slowest rank, of the exchange that is left when the last rank
    has finished its backward pass, and bytes sent by a rank, on average."""
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    left: dict[str, list[float]] = {mode: [] for mode in MODES}
    sent: dict[str, list[int]] = {mode: [] for mode in MODES}
    early = 0
    for attempt in range(repeats + 1):  # the first warms up, and learns which parameters have no gradients
        for mode in MODES:
            with exchanging(phase, mode) as seen:
                distributed.barrier()
                bytes_before, start = bytes_sent(), time.perf_counter()
                step.run_phase(phase, batches)
                elapsed = time.perf_counter() - start
                own = (elapsed, seen["sec"], bytes_sent() - bytes_before)
            if attempt > 0:
                elapsed_of, left_of, bytes_of = zip(*distributed.gather_objects(own), strict=True)
                seconds[mode].append(max(elapsed_of))
                left[mode].append(min(left_of))
                sent[mode].append(sum(bytes_of) / len(bytes_of))
            early = seen["launched"] if mode == "during" else early
    params = [param for bucket in phase.reducer.buckets for param in bucket.params]
    return {
        "every": phase.interval,
        "gradient_bytes": sum(param.numel() * param.element_size() for param in params),
        "buckets": len(phase.reducer.buckets),
        "buckets_before_the_end": early,
        "sec": {mode: statistics.median(values) for mode, values in seconds.items()},
        "exchange_left_sec": {mode: statistics.median(values) for mode, values in left.items()},
        "sent_bytes": statistics.median(sent["during"]) - statistics.median(sent["none"]),
    }


@contextlib.contextmanager
def exchanging(phase: Phase, mode: str) -> Iterator[dict[str, float]]:
    """Set when gradients travel. Yields how many buckets left during the backward pass, and the seconds of the rest."""
    seen = {"launched": 0, "sec": 0.0}
    reducer, finish = phase.reducer, phase.reducer.finish
    was_overlapped = reducer.is_overlapped
    reducer.is_overlapped = mode == "during"

    def observed_finish() -> None:
        seen["launched"] = reducer.num_launched
        start = time.perf_counter()
        if mode != "none":
            finish()
        seen["sec"] = time.perf_counter() - start

    reducer.finish = observed_finish  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del reducer.finish  # type: ignore[attr-defined]
        reducer.is_overlapped = was_overlapped


def bytes_sent() -> int:
    return int(Path(f"/sys/class/net/{CARD}/statistics/tx_bytes").read_text())


def per_step(phases: dict[str, Any]) -> dict[str, Any]:
    """An average step: each phase by its interval."""
    num = distributed.get_world_size()

    def mean(value: Callable[[dict[str, Any]], float]) -> float:
        return sum(value(phase) / phase["every"] for phase in phases.values())

    sec = {mode: mean(lambda phase, mode=mode: phase["sec"][mode]) for mode in MODES}
    left = {mode: mean(lambda phase, mode=mode: phase["exchange_left_sec"][mode]) for mode in MODES}
    gradient_bytes = mean(lambda phase: phase["gradient_bytes"])
    return {
        "sec": sec,
        "exchange_left_sec": left,
        "hidden_share": 1 - left["during"] / left["after"] if num > 1 else None,
        "gradient_bytes": gradient_bytes,
        "sent_bytes": mean(lambda phase: phase["sent_bytes"]),
        "theoretical_bytes": 2 * (num - 1) / num * gradient_bytes,
    }


# The table


def print_header(setting: dict[str, Any]) -> None:
    print("  ".join(f"{key}={value}" for key, value in setting.items() if value is not None))
    print(f"{'':>19} {'MB sent per step and process':>35} {'seconds per step, exchange':>29} {'exchange left':>27}")
    print(
        f"{'processes':>9} {'Mbit/s':>9} {'2(N-1)/N*grad':>15} {'measured':>9} {'ratio':>9} "
        f"{'none':>9} {'after':>9} {'during':>9} {'after':>9} {'during':>9} {'hidden':>7}"
    )


def print_row(row: dict[str, Any]) -> None:
    sent, theory = row["sent_bytes"] / 1e6, row["theoretical_bytes"] / 1e6
    ratio = f"{sent / theory:9.3f}" if theory else f"{'-':>9}"
    hidden = f"{row['hidden_share']:7.0%}" if row["hidden_share"] is not None else f"{'-':>7}"
    times = " ".join(f"{row['sec'][mode]:9.3f}" for mode in MODES)
    left = " ".join(f"{row['exchange_left_sec'][mode]:9.3f}" for mode in MODES[1:])
    rate = row["mbit_per_sec"] or "-"
    print(f"{row['processes']:>9} {rate:>9} {theory:15.2f} {sent:9.2f} {ratio} {times} {left} {hidden}", flush=True)


if __name__ == "__main__":
    dnnlib.cli.run(main)
