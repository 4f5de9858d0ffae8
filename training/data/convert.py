"""Turn image collections into data sets for training: one size, one pixel type, PNGs and `dataset.json`.

The work behind dataset_tool.py: `open_collection` reads folders, zips, and sets as they are published; `convert` writes.
"""

import contextlib
import json
import os
import shutil
import zipfile
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from dnnlib.bars import tqdm
from dnnlib.errors import UserError
from training.data.collections import Collection
from training.data.file_index import HEADER_DTYPE
from training.data.hub_collections import open_collection
from training.data.image_files import BadImage
from training.data.labels import LABEL_FILE, Label
from training.data.pixels import CHANNEL_NAMES, encode_png, reason_for
from training.data.transforms import BITS, CHANNELS, RESAMPLE, Plan, Size, TooSmall, pad_values, resample_to, to_bits
from training.data.zip_index import printable

SHEET_IMAGES, SHEET_COLUMNS = 48, 8
SHEET_CELL = 64, 128  # pixels of a side: small images are enlarged by a whole factor, large ones made smaller

Report = Callable[[str], None]


# Output --------------------------------------------------------------------------------------------------------------


class Output:
    """A folder or zip that appears under its name when it is complete, and leaves nothing behind otherwise."""

    def __init__(self, dest: str | os.PathLike):
        """Raises `UserError` where something stands at `dest` already, or where it cannot be written."""
        self.dest = Path(dest)
        self.is_zip = self.dest.suffix.lower() == ".zip"
        if not self.is_zip and self.dest.suffix.lower() in (".tar", ".gz", ".tgz", ".7z", ".rar", ".png", ".jpg"):
            raise UserError(f"--dest: {self.dest}: only folders and .zip files can be written; choose such a name")
        self._refuse_existing()
        self._temporary = self.dest.with_name(f".{self.dest.name}.{os.getpid()}.tmp")
        self._new_folders: list[Path] = []
        self._archive: zipfile.ZipFile | None = None
        self._is_complete = False

    def _refuse_existing(self) -> None:
        if self.dest.is_dir() and not self.is_zip and not any(self.dest.iterdir()):
            return
        if os.path.lexists(self.dest):
            raise UserError(f"--dest: {self.dest}: exists and is not overwritten; choose another name or remove it")

    def __enter__(self) -> "Output":
        try:
            self._make_folder(self.dest.absolute().parent)
            if self.is_zip:
                self._archive = zipfile.ZipFile(self._temporary, "x", zipfile.ZIP_STORED)
            else:
                self._temporary.mkdir()
        except OSError as error:
            self._discard()
            raise self._write_error(error) from error
        return self

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir()
            self._new_folders.append(folder)

    def write(self, name: str, data: bytes) -> None:
        try:
            if self._archive is not None:
                # A fixed date: the same images give the same archive, byte for byte.
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o644 << 16
                self._archive.writestr(info, data)
            else:
                path = self._temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        except OSError as error:
            raise self._write_error(error) from error

    def complete(self) -> None:
        """Give the finished output its name."""
        self._refuse_existing()
        try:
            if self._archive is not None:
                self._archive.close()
            elif self.dest.is_dir():
                self.dest.rmdir()
            os.rename(self._temporary, self.dest)
        except OSError as error:
            raise self._write_error(error) from error
        self._is_complete = True

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._is_complete:
            self._discard()

    def _discard(self) -> None:
        if self._archive is not None and self._archive.fp is not None:
            self._archive.fp.close()  # not the archive, which would write its directory to what may be a full disk
            self._archive.fp = None
        # The error that led here is the one to report.
        with contextlib.suppress(OSError):
            if self._temporary.is_dir():
                shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.unlink(missing_ok=True)
            for folder in reversed(self._new_folders):
                folder.rmdir()

    def _write_error(self, error: OSError) -> UserError:
        return UserError(
            f"--dest: {self.dest}: cannot be written ({reason_for(error)}); choose another place or make room"
        )


# Conversion ----------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was written."""

    num_images: int = 0
    size: Size = (0, 0)
    channels: int = 0
    bits: int = 0
    labels: str = "no labels"
    skipped: list[str] = field(default_factory=list)
    sheet: Path | None = None  # a picture of some of them


def convert(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    max_images: int | None = None,
    sample_seed: int | None = None,
    transform: str | None = None,
    size: tuple[int | None, int | None] | None = None,
    channels: str = "keep",
    bits: str = "auto",
    resample: str = "lanczos",
    pad_color: str | None = None,
    trim: bool = False,
    sheet: bool = False,
    strict: bool = False,
    num_workers: int | None = None,
    report: Report = tqdm.write,
) -> Result:
    """Write the images of `source` into the folder or zip `dest`; `report` is told what is skipped or changed.

    `size` (width, height) is needed by transforms and by images of differing sizes; where one side is None the images
    keep theirs. `max_images` are the first ones, or with `sample_seed` a random sample. `sheet`: a picture of some of
    them beside `dest`. With `strict`, an image that cannot be read ends the conversion. Raises `UserError`, and then
    nothing has been written.
    """
    pad_values(pad_color, 3, np.dtype(np.uint8))
    output = Output(dest)
    collection = open_collection(source, max_images if sample_seed is None else None)
    try:
        job = _Conversion(collection, strict, report)
        indices, headers = job.read_headers(choose(len(collection.names), max_images, sample_seed))
        kind = job.pixel_type(indices, headers, CHANNELS[channels], BITS[bits])
        plan = Plan(*kind, job.complete_size(size, indices, headers), transform, RESAMPLE[resample], pad_color, trim)
        with output:
            result = job.write(indices, plan, output, num_workers or default_workers())
        if sheet:
            job.save_sheet(output.dest.with_name(output.dest.name + ".png"))
        return result
    finally:
        collection.close()


def choose(count: int, max_images: int | None, sample_seed: int | None) -> np.ndarray:
    """The numbers of the images taken, ascending: all, the first ones, or with a seed a random sample."""
    if max_images is None or max_images >= count:
        return np.arange(count)
    if sample_seed is None:
        return np.arange(max_images)
    return np.sort(np.random.RandomState(sample_seed % (1 << 32)).permutation(count)[:max_images])


CHANGES = {
    "hidden": "colours where it is transparent, which nobody sees and networks do: they are written as black",
    "trimmed": "a border, which is cut off (--trim)",
    "stretched": "not the shape of the result, and is stretched; --transform=pad or center-crop keeps shapes",
}


def default_workers() -> int:
    """The number of processors that this process may use, up to 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)


class _Conversion:
    """The steps of `convert`, and what they skip."""

    def __init__(self, collection: Collection, strict: bool, report: Report):
        self.collection, self.strict, self.report = collection, strict, report
        self.result = Result()
        self._changes: dict[str, Counter[int]] = {change: Counter() for change in CHANGES}
        self._shown: list[np.ndarray] = []
        for remark in collection.remarks():
            report(remark)

    def skip(self, name: str, reason: str) -> None:
        self.result.skipped.append(name)
        self.report(f"Skipped {name}: {reason}")

    def skip_bad(self, error: BadImage) -> None:
        if self.strict:
            raise UserError(f"{error.where}: {error.name} cannot be read ({error.reason}); remove it, or drop --strict")
        self.skip(error.name, error.reason)

    def read_headers(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices of those images that can be read, and their headers."""
        indices, headers = array("L"), np.empty(len(chosen), HEADER_DTYPE)
        for index in tqdm(map(int, chosen), "Looking", len(chosen), unit="img", leave=False, disable=None):
            try:
                headers[len(indices)] = self.collection.header(index)
                indices.append(index)
            except BadImage as error:
                self.skip_bad(error)
        if not indices:
            raise UserError(f"{self.collection.where}: none of its images can be read; check where it comes from")
        found = np.array(indices), headers[: len(indices)]
        self._say_animated(*found)
        return found

    def _say_animated(self, indices: np.ndarray, headers: np.ndarray) -> None:
        animated = indices[headers["animated"]].tolist()
        if animated:
            count = f" and {len(animated) - 1:,} more" if len(animated) > 1 else ""
            name = printable(self.collection.names[animated[0]])
            self.report(f"{name}{count}: several pictures in one file, of which the first is taken")

    def pixel_type(self, indices: np.ndarray, headers: np.ndarray, channels: int, bits: int) -> tuple[int, int]:
        """Channels and bits that hold every image without loss, unless they are asked for."""
        kinds, first, counts = np.unique(headers[["channels", "bits"]], return_index=True, return_counts=True)
        wanted = channels or int(kinds["channels"].max()), bits or int(kinds["bits"].max())
        if len(kinds) > 1:
            found = ", ".join(
                f"{count:,} {_kind(*kind)} such as {self._name(indices[place])}"
                for kind, place, count in zip(kinds.tolist(), first.tolist(), counts.tolist(), strict=True)
            )
            self.report(f"The images are of several kinds ({found}): all are written as {_kind(*wanted)}")
        if not bits:
            self._say_depths(indices, headers)
        return wanted

    def _say_depths(self, indices: np.ndarray, headers: np.ndarray) -> None:
        deep = headers["bits"] == 16
        if deep.any() and not deep.all():
            names = ", ".join(self._name(index) for index in indices[deep][:3])
            more = f" and {int(deep.sum()) - 3:,} more" if deep.sum() > 3 else ""
            self.report(
                f"{int(deep.sum()):,} of {len(deep):,} images have 16 bits ({names}{more}), so that all get them; "
                "--bits=8 writes 8"
            )

    def _name(self, index: int) -> str:
        return printable(self.collection.names[int(index)])

    def complete_size(
        self, size: tuple[int | None, int | None] | None, indices: np.ndarray, headers: np.ndarray
    ) -> Size:
        """The size of the result; where a side is not given, the one that all images have. Raises `UserError`."""
        width, height = size or (None, None)
        if width is not None and height is not None:
            return width, height
        if width is None and height is None:
            return self.common_size(indices, headers)
        side, flag = ("width", "--width") if width is None else ("height", "--height")
        sides = headers[side]
        if (sides != sides[0]).any():
            other = self._name(indices[int((sides != sides[0]).argmax())])
            raise UserError(
                f"{self.collection.where}: {self._name(indices[0])} and {other} differ in {side}; give it with {flag}"
            )
        return (int(sides[0]), height) if height is not None else (width or 0, int(sides[0]))

    def common_size(self, indices: np.ndarray, headers: np.ndarray) -> Size:
        """The one size of all images. Raises `UserError`."""
        width, height = int(headers["width"][0]), int(headers["height"][0])
        differs = (headers["width"] != width) | (headers["height"] != height)
        if differs.any():
            other = int(differs.argmax())
            names = [printable(self.collection.names[int(indices[place])]) for place in (0, other)]
            raise UserError(
                f"{self.collection.where}: {names[0]} is {width}x{height} and {names[1]} is {headers['width'][other]}x"
                f"{headers['height'][other]}; give them one size with --resolution=WxH (and --transform=center-crop)"
            )
        return width, height

    def write(self, indices: np.ndarray, plan: Plan, output: Output, num_workers: int) -> Result:
        """Convert and write, in order."""
        entries: list[tuple[str, Label]] = []
        labels = self.collection.labels

        shown = set(indices[np.linspace(0, len(indices) - 1, min(len(indices), SHEET_IMAGES)).astype(int)].tolist())

        def work(index: int) -> tuple[bytes, list[str], np.ndarray | None]:
            pixels, changes = plan.apply(self.collection.pixels(index))
            return encode_png(pixels), changes, sheet_cell(pixels) if index in shown else None

        bar = tqdm(total=len(indices), desc="Converting", unit="img", disable=None)
        with bar, ThreadPoolExecutor(num_workers) as pool:
            for index, future in _in_order(pool, work, indices, ahead=4 * num_workers):
                bar.update()
                data = self._data_or_skip(index, future, plan)
                if data is None:
                    continue
                number = f"{self.result.num_images:08d}"
                name = f"{number[:5]}/img{number}.png"
                output.write(name, data)
                self.result.num_images += 1
                if labels is not None:
                    entries.append((name, np.asarray(labels[index]).tolist()))
        return self._finish(entries, plan, output)

    def _data_or_skip(self, index: int, future: "Future[_Converted]", plan: Plan) -> bytes | None:
        try:
            data, changes, cell = future.result()
            for change in changes:
                self._changes[change][index] += 1
            if cell is not None:
                self._shown.append(cell)
            return data
        except BadImage as error:
            self.skip_bad(error)
        except TooSmall:
            self.skip(self.collection.names[index], f"smaller than {plan.size[0]}x{plan.size[1]}")
        return None

    def _finish(self, entries: list[tuple[str, Label]], plan: Plan, output: Output) -> Result:
        if self.result.num_images == 0:
            raise UserError(
                f"{self.collection.where}: none of its images could be converted, so that nothing is written"
            )
        self._say_changes()
        output.write(LABEL_FILE, json.dumps({"labels": entries or None}).encode())
        output.complete()
        self.result.size, self.result.channels, self.result.bits = plan.output_size, plan.channels, plan.bits
        self.result.labels = _describe_labels([label for _, label in entries])
        return self.result

    def _say_changes(self) -> None:
        for change, found in self._changes.items():
            if found:
                more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
                self.report(f"{self._name(min(found))}{more}: has {CHANGES[change]}")

    def save_sheet(self, path: Path) -> None:
        """Some of the images in one picture. What stands there already is not touched."""
        if os.path.lexists(path):
            self.report(f"{path}: exists and is not overwritten, so that there is no new picture of the images")
            return
        if not self._shown:
            return
        import torch  # takes longer than many a conversion

        from training.data.grids import save_grid
        from training.data.image_tensors import to_float

        cells = torch.from_numpy(np.stack(self._shown)).permute(0, 3, 1, 2)
        try:
            save_grid(path, to_float(cells), SHEET_COLUMNS)
        except (OSError, UserError) as error:  # the set itself is complete
            self.report(f"{path}: no picture of the images ({reason_for(error)})")
            return
        self.result.sheet = path


_Converted = tuple[bytes, list[str], np.ndarray | None]


def sheet_cell(pixels: np.ndarray) -> np.ndarray:
    """uint8 `[h, w, C]`: small images enlarged by a whole factor, large ones made smaller."""
    smallest, largest = SHEET_CELL
    pixels = to_bits(pixels, 8)
    height, width = pixels.shape[:2]
    if max(height, width) > largest:
        scale = largest / max(height, width)
        return resample_to(pixels, (max(round(width * scale), 1), max(round(height * scale), 1)))
    factor = -(-smallest // max(height, width))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], _Converted], indices: np.ndarray, ahead: int
) -> Iterator[tuple[int, "Future[_Converted]"]]:
    """Futures in the order of the indices, no more than `ahead` at work or waiting."""
    pending: deque[tuple[int, Future[_Converted]]] = deque()
    try:
        for index in map(int, indices):
            pending.append((index, pool.submit(work, index)))
            if len(pending) >= ahead:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for _, future in pending:
            future.cancel()


def _kind(channels: int, bits: int) -> str:
    return CHANNEL_NAMES[channels] if bits == 8 else f"16-bit {CHANNEL_NAMES[channels]}"


def _describe_labels(labels: list[Label]) -> str:
    if not labels:
        return "no labels"
    if isinstance(labels[0], int):
        return f"labels of {len(set(labels)):,} classes"
    return f"labels of {len(labels[0])} numbers"
