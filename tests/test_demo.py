"""The demo: its two data sets, its measure, its words, and the whole of it in miniature."""

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")

from demo import digits, report, run_demo, trainings
from demo.evaluate import METRIC, PixelSpace, Snapshot, same_class_share, to_vectors
from dnnlib.errors import UserError
from tests.helpers.golden import ROOT
from training.dataset import ImageFolderDataset


@pytest.fixture(scope="module")
def handwritten():
    return digits.handwritten_digits()


@pytest.fixture(scope="module")
def printed():
    return digits.printed_digits(400, seed=0)


# The data sets.


def test_handwritten_digits_are_the_originals_enlarged(handwritten):
    from sklearn.datasets import load_digits

    images, classes = handwritten
    assert images.shape == (1797, 16, 16) and images.dtype == np.uint8
    assert sorted(set(classes)) == list(range(10))
    originals = load_digits().images * (255 / 16)
    reduced = images.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    # Bicubic sharpens, and what leaves the range of grey values is cut.
    assert np.abs(reduced - originals).mean() < 15
    assert np.corrcoef(reduced.ravel(), originals.ravel())[0, 1] > 0.99


def test_printed_digits(printed):
    images, classes = printed
    assert images.shape == (400, 16, 16) and images.dtype == np.uint8
    assert np.bincount(classes).tolist() == [40] * 10
    assert images.max() > 250 and np.median(images) < 30  # white on black
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert border.mean() < 20  # the digits lie inside


def test_a_zip_of_them_has_labels(tmp_path, printed):
    images, labels = printed
    digits.save_zip(tmp_path / "printed.zip", images[:20], labels[:20])
    dataset = ImageFolderDataset(str(tmp_path / "printed.zip"), use_labels=True)
    assert dataset.get_classes().tolist() == labels[:20].tolist()
    dataset.close()


def test_printed_digits_depend_on_the_seed_alone(printed):
    again, classes = digits.printed_digits(400, seed=0)
    assert np.array_equal(again, printed[0]) and np.array_equal(classes, printed[1])
    assert not np.array_equal(digits.printed_digits(400, seed=1)[0], again)


@pytest.mark.parametrize("kind", ["handwritten", "printed"])
def test_ten_classes_look_different(kind, request):
    images, classes = request.getfixturevalue(kind)
    vectors = to_vectors(images)
    means = np.stack([vectors[classes == digit].mean(axis=0) for digit in range(10)])
    nearest = np.square(vectors[:, None] - means).sum(axis=2).argmin(axis=1)
    assert (nearest == classes).mean() > 0.75  # chance: 0.1


@pytest.mark.parametrize("font", digits.available_fonts(), ids=lambda path: path.stem)
def test_every_font_has_ten_different_digits(font):
    images = np.stack([digits.print_digit(digit, font, np.random.default_rng(0)) for digit in range(10)]).astype(int)
    differences = np.abs(images[:, None] - images).mean(axis=(2, 3)) + 1000 * np.eye(10)
    assert differences.min() > 5
    heights = [np.flatnonzero(image.max(axis=1) > 100) for image in images]
    assert all(10 <= rows[-1] - rows[0] + 1 <= 16 for rows in heights)


def test_zip_is_a_data_set_and_always_the_same(tmp_path, printed):
    for name in ("one.zip", "two.zip"):
        digits.save_zip(tmp_path / name, printed[0][:5])
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    dataset = ImageFolderDataset(path=str(tmp_path / "one.zip"))
    assert list(dataset.image_shape) == [1, 16, 16]
    assert np.array_equal(dataset.read_images(np.arange(5))[:, 0], printed[0][:5])


# The measure.


def test_distance_in_pixel_space(handwritten, printed):
    images = handwritten[0]
    space = PixelSpace(images)
    assert METRIC == "fd[pixel-pca40]"
    assert space.components.shape == (256, 40)
    np.testing.assert_allclose(space.components.T @ space.components, np.eye(40), atol=1e-9)
    assert 0.9 < space.share_of_variance <= 1
    assert space.distance(images[::-1]) < 1e-6
    floor = space.floor(images)
    assert 0 < floor < 0.1 * space.distance(printed[0])
    noisy = np.random.default_rng(0).permuted(images, axis=0)  # each pixel from another image: right means, no shapes
    assert space.distance(noisy) > 10 * floor


def test_same_class_share(handwritten):
    images, classes = handwritten
    index = np.arange(0, 1797, 7)
    snapshot = Snapshot(kimg=1, distance=0, images=images[index], source_index=index)
    assert same_class_share(snapshot, classes, images, classes) == 1
    assert same_class_share(snapshot, (classes + 1) % 10, images, classes) == 0


# The words.

KIMG = [2.0, 4.0, 6.0, 8.0]


def test_verdict_when_spider_wins():
    words = report.verdict(KIMG, [30, 20, 15, 10], [20, 12, 9, 8])
    assert words.startswith(
        "Spider led at every snapshot. At the end (8 kimg) Spider is better, its distance is 20% lower"
    )
    assert words.endswith("Plain DCGAN first came down to its final 10.0 at 8 kimg, Spider at 6 kimg.")


def test_verdict_when_spider_loses():
    words = report.verdict(KIMG, [30, 20, 15, 8], [20, 20.5, 16, 10])
    assert words.startswith("Spider led at 2 kimg; the two were level at 4 kimg; plain DCGAN led at 6 and 8 kimg.")
    assert "plain DCGAN is better, its distance is 20% lower: Spider 10.0, plain 8.0" in words
    assert "Spider does not win at this budget" in words
    assert words.endswith("Spider never did.")


def test_verdict_when_level():
    words = report.verdict(KIMG, [30, 20, 15, 10], [20, 22, 15, 9.8])
    assert "At the end (8 kimg) they are level within 5%: Spider 9.8, plain 10.0. Spider does not win here." in words


def test_verdict_when_the_lead_changes_often():
    kimg = [1.0, 2, 3, 4, 5, 6]
    words = report.verdict(kimg, [30, 20, 30, 20, 30, 20], [20, 30, 20, 30, 20, 20])
    assert words.startswith(
        "Spider led at 1, 3 and 5 kimg; plain DCGAN led at 2 and 4 kimg; the two were level at 6 kimg. "
    )


class Page(HTMLParser):
    """What a page loads, and which elements are left open."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def fake_report(handwritten, printed) -> report.Report:
    images = handwritten[0]

    def run(distances, command):
        return report.Run(KIMG, distances, images[:100], images[100:200], 123.0, 65.0, command)

    return report.Report(
        plain=run([30, 20, 15, 10.04], "python train.py --desc=<plain>"),
        spider=run([20, 12, 9, 8.06], "python train.py --source=printed.zip"),
        metric=METRIC,
        early=1,
        target=images,
        source=printed[0],
        num_target=1797,
        num_source=400,
        num_generated=100,
        pair_sources=printed[0],
        floor=0.77,
        source_distance=38.7,
        share_of_variance=0.99,
        same_class=0.25,
        facts={"Machine": "a <fast> one & quiet", "Speed": "123 img/s"},
    )


def test_page(handwritten, printed):
    text = report.page(fake_report(handwritten, printed))
    page = Page(text)
    assert page.open == []
    assert len(page.loaded) == 8 and all(link.startswith("data:image/png;base64,") for link in page.loaded)
    for shown in ("10.0", "<b>8.1</b>", "&minus;20%", "fd[pixel-pca40]", "1,797", "38.7", "0.8", "25%"):
        assert shown in text
    assert "a &lt;fast&gt; one &amp; quiet" in text and "--desc=&lt;plain&gt;" in text
    assert "Spider is better" in text
    assert not re.search(r"\$[a-z{]", text)


def test_grid_and_pairs():
    images = np.stack([np.full([4, 3], 10 * index, np.uint8) for index in range(5)])
    grid = np.asarray(report.grid(images, columns=3))
    assert grid.shape == (2 * 4 + 1, 3 * 3 + 2)
    assert (grid[5:, 4:7] == 40).all() and (grid[5:, 8:] == report.PAPER).all()
    pairs = np.asarray(report.pairs(images, images + 1, columns=5))
    assert pairs.shape == (4 + 1 + 4, 5 * 3 + 4)
    assert (pairs[:4, 4:7] == 10).all() and (pairs[5:, 4:7] == 11).all()


# Running it.


def test_output_folder_is_replaced_only_if_the_demo_made_it(tmp_path):
    out = run_demo.fresh_folder(tmp_path / "new" / "out")
    (out / "old.txt").write_text("from the last time")
    run_demo.fresh_folder(out)
    assert not (out / "old.txt").exists()
    (tmp_path / "mine").mkdir()
    run_demo.fresh_folder(tmp_path / "mine")  # an empty one may be used
    precious = tmp_path / "new" / "precious.txt"
    precious.write_text("mine")
    with pytest.raises(UserError, match=r"--outdir=.*did not make"):
        run_demo.fresh_folder(tmp_path / "new")
    with pytest.raises(UserError, match=r"--outdir=.*is a file"):
        run_demo.fresh_folder(precious)
    assert precious.read_text() == "mine"


def test_page_is_replaced_only_if_the_demo_made_it(tmp_path):
    page = tmp_path / "index.html"
    assert run_demo.check_page(page) == page
    page.write_text(f'<meta name="generator" content="{report.GENERATOR}">')
    run_demo.check_page(page)
    page.write_text("<p>my homepage</p>")
    with pytest.raises(UserError, match=r"--page=.*not made by the demo"):
        run_demo.check_page(page)
    with pytest.raises(UserError, match="--page="):
        run_demo.check_page(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        run_demo.check_page(tmp_path / "missing" / "index.html")


def tick_line(kimg: float, seconds: float) -> str:
    return json.dumps({"Progress/kimg": {"mean": kimg}, "Timing/total_sec": {"mean": seconds}})


def test_progress_follows_the_statistics_file(tmp_path):
    training = trainings.Training("plain", tmp_path, [], total_kimg=4)
    assert list(training.new_ticks()) == []  # there is no file yet
    (tmp_path / "00000-run").mkdir()
    stats = tmp_path / "00000-run" / "stats.jsonl"
    second = tick_line(2, 20)
    stats.write_text(tick_line(1, 10) + "\n" + second[:9])
    assert [line.split() for line in training.new_ticks()] == [
        ["plain", *"1.00 of 4 kimg 100 img/s 30.0s left".split()]
    ]
    stats.write_text(tick_line(1, 10) + "\n" + second + "\n")
    assert len(list(training.new_ticks())) == 1
    assert (training.kimg, training.img_per_sec) == (2, 100)
    assert list(training.new_ticks()) == []


def test_failing_training_is_reported_and_stops_the_other(tmp_path, monkeypatch, capfd):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, time\nif 'bad' in sys.argv:\n    print('the reason')\n    sys.exit(3)\nprint('started')\ntime.sleep(600)"
    )
    monkeypatch.setattr(trainings, "ROOT", tmp_path)
    good = trainings.Training("plain", tmp_path / "plain", ["good"], 1)
    bad = trainings.Training("Spider", tmp_path / "spider", ["bad"], 1)
    with pytest.raises(UserError, match="Spider training failed with exit code 3"):
        trainings.run_trainings([good, bad])
    assert "the reason" in capfd.readouterr().err
    assert good.process.poll() is not None


def test_trainings_differ_by_the_source_alone(tmp_path):
    plan = trainings.plan_trainings(tmp_path, tmp_path / "target.zip", tmp_path / "source.zip", kimg=20, seed=3)
    plain, spider = (
        {argument for argument in plan[key].arguments if not argument.startswith("--outdir")}
        for key in ("plain", "spider")
    )
    assert plain <= spider and spider - plain == {f"--source={tmp_path / 'source.zip'}", trainings.SPIDER}
    assert {"--seed=3", "--kimg=20", "--tick=1"} <= plain


def test_the_demo_in_miniature(tmp_path):
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "demo.run_demo", "--kimg=0.1", f"--outdir={tmp_path / 'out'}", f"--page={page}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "img/s" in done.stdout and f"Open {page}" in done.stdout
    text = page.read_text(encoding="utf-8")
    assert Page(text).open == []
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    for key in ("plain", "spider"):
        run = numbers[key]
        assert run["kimg"] == [0.112]  # seven steps of 16
        assert len(run["distances"]) == 1 and run["distances"][0] > numbers["floor"]
        assert run["img_per_sec"] > 0
        assert f"{run['distances'][0]:.1f}" in text
    assert set(numbers) == {field.name for field in dataclasses.fields(report.Report)} - {
        "target",
        "source",
        "pair_sources",
    }


def test_bad_options_are_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "demo.run_demo", f"--outdir={tmp_path}", f"--page={tmp_path / 'page.html'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--outdir=" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
