"""The demo's page: one HTML file with everything in it, made from numbers and images alone."""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

TEMPLATE = Path(__file__).with_name("page.html")
GENERATOR = "Spider StyleGAN demo"
"""What the page calls itself in its head; a page of another kind is not written over."""
NAMES = {"plain": "Plain DCGAN", "spider": "Spider DCGAN"}
COLORS = {"plain": "#64748b", "spider": "#c2410c"}
LEVEL = 0.05  # distances closer than this share count as level
SCALE = 3  # screen pixels per image pixel
GRID_COLUMNS, GRID_ROWS = 10, 6
PAIR_COLUMNS, PAIR_ROWS = 20, 2
CELL_GAP, PAIR_GAP = 1, 5  # pixels between the cells of a grid, and between rows of pairs
PAPER = 255  # grey of the gaps


@dataclass
class Run:
    """One training: what it generated, and how far that is from the target, snapshot by snapshot."""

    kimg: list[float]
    distances: list[float]
    early: np.ndarray  # uint8 [n, h, w], from the snapshot `Report.early`
    final: np.ndarray  # uint8 [n, h, w], from the last
    img_per_sec: float
    seconds: float
    command: str


@dataclass
class Report:
    """Everything that the page shows."""

    plain: Run
    spider: Run
    metric: str
    early: int
    """Which snapshot is the early one."""
    target: np.ndarray  # uint8 [n, h, w]
    source: np.ndarray  # uint8 [n, h, w]
    num_target: int
    num_source: int
    num_generated: int
    pair_sources: np.ndarray  # uint8 [n, h, w], what the first of `spider.final` were made from
    floor: float
    """Distance between two halves of the target."""
    source_distance: float
    """Distance from the source to the target, if a generator only copied."""
    share_of_variance: float
    same_class: float
    facts: dict[str, str]
    """Machine, versions, times: a name and a line each."""


# Words.


def verdict(kimg: list[float], plain: list[float], spider: list[float]) -> str:
    """Who led at which kimg, who is better at the end and by how much: what the numbers say, whichever way it went."""
    return (
        f"{describe_lead(kimg, plain, spider)} {describe_end(kimg, plain, spider)} {describe_pace(kimg, plain, spider)}"
    )


def leader(plain: float, spider: float) -> str | None:
    """`plain`, `spider`, or None where they are level."""
    if abs(plain - spider) <= LEVEL * min(plain, spider):
        return None
    return "plain" if plain < spider else "spider"


def describe_lead(kimg: list[float], plain: list[float], spider: list[float]) -> str:
    leaders = [leader(p, s) for p, s in zip(plain, spider, strict=True)]
    said = {"spider": "Spider led", "plain": "plain DCGAN led", None: "the two were level"}
    order = sorted(set(leaders), key=leaders.index)
    if len(order) == 1:
        sentence = f"{said[order[0]]} at every snapshot"
    else:
        at = {who: [f"{k:.3g}" for k, ahead in zip(kimg, leaders, strict=True) if ahead == who] for who in order}
        sentence = "; ".join(f"{said[who]} at {enumerate_words(at[who])} kimg" for who in order)
    return f"{sentence[0].upper()}{sentence[1:]}."


def enumerate_words(words: list[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def describe_end(kimg: list[float], plain: list[float], spider: list[float]) -> str:
    numbers = f"Spider {spider[-1]:.1f}, plain {plain[-1]:.1f}"
    ahead = leader(plain[-1], spider[-1])
    if ahead is None:
        return (
            f"At the end ({kimg[-1]:.3g} kimg) they are level within {LEVEL:.0%}: {numbers}. Spider does not win here."
        )
    margin = abs(plain[-1] - spider[-1]) / max(plain[-1], spider[-1])
    if ahead == "spider":
        return f"At the end ({kimg[-1]:.3g} kimg) Spider is better, its distance is {margin:.0%} lower: {numbers}."
    return (
        f"At the end ({kimg[-1]:.3g} kimg) plain DCGAN is better, its distance is {margin:.0%} lower: {numbers}. "
        "Spider does not win at this budget."
    )


def describe_pace(kimg: list[float], plain: list[float], spider: list[float]) -> str:
    """How soon each was where plain DCGAN ended."""
    goal = plain[-1]
    plain_at = next(k for k, distance in zip(kimg, plain, strict=True) if distance <= goal)
    spider_at = next((k for k, distance in zip(kimg, spider, strict=True) if distance <= goal), None)
    spider_said = "Spider never did" if spider_at is None else f"Spider at {spider_at:.3g} kimg"
    return f"Plain DCGAN first came down to its final {goal:.1f} at {plain_at:.3g} kimg, {spider_said}."


# Pictures.


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """uint8 `[n, h, w]` in rows, with thin gaps; missing cells stay empty."""
    n, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.full([rows * (height + CELL_GAP) - CELL_GAP, columns * (width + CELL_GAP) - CELL_GAP], PAPER, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + CELL_GAP), index % columns * (width + CELL_GAP)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)


def pairs(sources: np.ndarray, made: np.ndarray, columns: int) -> Image.Image:
    """Rows of source images, each above what became of it."""
    gap = np.full([len(made), PAIR_GAP, made.shape[2]], PAPER, np.uint8)
    line = np.full([len(made), CELL_GAP, made.shape[2]], PAPER, np.uint8)
    picture = grid(np.concatenate([sources, line, made, gap], axis=1), columns)
    return picture.crop((0, 0, picture.width, picture.height - PAIR_GAP))


def curves(report: Report) -> bytes:
    """Distance against kimg of both trainings, as a PNG."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for key, run in (("plain", report.plain), ("spider", report.spider)):
        axes.plot(run.kimg, run.distances, "o-", color=COLORS[key], label=NAMES[key], linewidth=2, markersize=4.5)
    axes.axhline(report.floor, color="#15803d", linestyle="--", label="two halves of the target (floor)")
    top = 1.1 * max(report.plain.distances + report.spider.distances)
    if report.source_distance < top:  # where it would only press the curves down, the text has it
        axes.axhline(report.source_distance, color="#a16207", linestyle=":", label="the printed source itself")
    axes.set_ylim(0, top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=report.plain.kimg[-1] > 5))
    axes.set_xlim(left=0)
    axes.set_xlabel("training length in kimg (thousands of real images shown)")
    axes.set_ylabel(f"{report.metric} to the target\n(squared, pixels in [-1, 1]; lower is better)")
    axes.grid(which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


# HTML.


def embed(picture: Image.Image, alt: str) -> str:
    """An `img` element that holds its file, enlarged by whole pixels."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return image_tag(buffer.getvalue(), alt, picture.width * SCALE, "pixels")


def image_tag(png: bytes, alt: str, width: int, css_class: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{css_class}" width="{width}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def distance_rows(report: Report) -> str:
    """Table rows: kimg, both distances, how they compare. The better one is set in bold."""
    rows = []
    for kimg, plain, spider in zip(report.plain.kimg, report.plain.distances, report.spider.distances, strict=True):
        cells = {"plain": f"{plain:.1f}", "spider": f"{spider:.1f}"}
        ahead = leader(plain, spider)
        if ahead is not None:
            cells[ahead] = f"<b>{cells[ahead]}</b>"
        percent = round(100 * (spider - plain) / plain)
        change = f"{percent:+d}%".replace("-", "&minus;") if percent != 0 else "0%"
        rows.append(f"<tr><td>{kimg:.1f}</td><td>{cells['plain']}</td><td>{cells['spider']}</td><td>{change}</td></tr>")
    return "\n".join(rows)


def fact_rows(facts: dict[str, str]) -> str:
    return "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(line)}</td></tr>" for name, line in facts.items()
    )


def command_line(command: str) -> str:
    """Each argument in an element of its own, so that lines break between them and not at their hyphens."""
    return " ".join(f"<span>{html.escape(argument)}</span>" for argument in command.split())


def page(report: Report) -> str:
    """The whole page."""
    plain, spider = report.plain, report.spider
    cells = GRID_COLUMNS * GRID_ROWS
    num_pairs = min(PAIR_COLUMNS * PAIR_ROWS, len(report.pair_sources))
    values = {
        "generator": GENERATOR,
        "metric": report.metric,
        "verdict": html.escape(verdict(plain.kimg, plain.distances, spider.distances)),
        "curves": image_tag(curves(report), f"{report.metric} against kimg of both trainings", 720, "curves"),
        "rows": distance_rows(report),
        "floor": f"{report.floor:.1f}",
        "source_distance": f"{report.source_distance:.1f}",
        "share_of_variance": f"{report.share_of_variance:.0%}",
        "num_target": f"{report.num_target:,}",
        "num_source": f"{report.num_source:,}",
        "num_generated": f"{report.num_generated:,}",
        "target": embed(grid(report.target[:cells], GRID_COLUMNS), "handwritten digits, the target"),
        "source": embed(grid(report.source[:cells], GRID_COLUMNS), "printed digits, the source"),
        "early_kimg": f"{plain.kimg[report.early]:.1f}",
        "final_kimg": f"{plain.kimg[-1]:.1f}",
        "pairs": embed(
            pairs(report.pair_sources[:num_pairs], spider.final[:num_pairs], PAIR_COLUMNS), "source above output"
        ),
        "same_class": f"{report.same_class:.0%}",
        "facts": fact_rows(report.facts),
        "plain_command": command_line(plain.command),
        "spider_command": command_line(spider.command),
    }
    for key, run in (("plain", plain), ("spider", spider)):
        values[f"{key}_early"] = embed(grid(run.early[:cells], GRID_COLUMNS), f"{NAMES[key]}, early")
        values[f"{key}_final"] = embed(grid(run.final[:cells], GRID_COLUMNS), f"{NAMES[key]}, at the end")
        values[f"{key}_early_distance"] = f"{run.distances[report.early]:.1f}"
        values[f"{key}_final_distance"] = f"{run.distances[-1]:.1f}"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)
