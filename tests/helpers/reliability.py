"""The table of what was tried and survived: tests that attack the program write its rows, `make test-faults` its page.

`make test` runs the short form of these tests; with LONG_TESTS in the environment they run at full length. Rows go to the
file that RELIABILITY_LOG names, if it names one.

    python -m tests.helpers.reliability ROWS.jsonl docs/reliability.md
"""

import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

import torch

IS_LONG = bool(os.environ.get("LONG_TESTS"))

INTRODUCTION = """# What was tried, and survived

Written by `make test-faults`: the tests in `tests/faults` and `tests/fuzz` at full length. `make test` runs them in a short
form. Do not edit; run it again.

"""


def amount(short: int, long: int) -> int:
    """How often to try: `short` in `make test`, `long` in `make test-faults`."""
    return long if IS_LONG else short


def record(topic: str, what: str, tried: int, survived: int, outcome: str) -> None:
    """A row of the table. topic: a heading; what: what was done to the program; outcome: what survival meant."""
    path = os.environ.get("RELIABILITY_LOG")
    if path:
        row = {"topic": topic, "what": what, "tried": tried, "survived": survived, "outcome": outcome}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def render(rows: list[dict]) -> str:
    """The page: a table for each topic, in the order in which topics first appear."""
    machine = (
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}"
    )
    page = INTRODUCTION + f"Run on {date.today().isoformat()}: {machine}.\n"
    for topic in dict.fromkeys(row["topic"] for row in rows):
        page += (
            f"\n## {topic}\n\n| what was done | tried | survived | what survival means |\n| --- | --- | --- | --- |\n"
        )
        for row in (row for row in rows if row["topic"] == topic):
            page += f"| {row['what']} | {row['tried']:,} | {row['survived']:,} | {row['outcome']} |\n"
    return page


def main(log: str, page: str) -> None:
    rows = [json.loads(line) for line in Path(log).read_text(encoding="utf-8").splitlines()]
    Path(page).write_text(render(rows), encoding="utf-8")
    print(f"{page}: {len(rows)} rows")


if __name__ == "__main__":
    main(*sys.argv[1:])
