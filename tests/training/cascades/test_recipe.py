"""Recipes of cascades: what a file says, and what is wrong with it in one line."""

import time

import pytest

from dnnlib.errors import UserError
from tests.helpers.golden import ROOT
from training.cascades.recipe import read_recipe


@pytest.fixture
def write(tmp_path):
    for name in ("a.zip", "b.zip", "c.zip", "both"):
        (tmp_path / name).write_bytes(b"")

    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


THREE = """
defaults: {cfg: stylegan2, batch: 8, source-noise: 0.1, stage-cache: 64, mirror: yes}
stages:
  - name: one
    data: a.zip
    kimg: 1.5
  - {name: two, source: one, data: b.zip, resume: one, batch: 16}
  - {name: three, source: two, data: [b.zip, c.zip], source_noise: 0}
  - {name: other, source: a.zip, data: c.zip}
table: [fid1k]
"""


def test_a_recipe_becomes_command_lines(write, tmp_path):
    recipe = read_recipe(write(THREE))
    one, two, three, other = recipe.stages
    assert set(one.arguments({})) == {
        "--cfg=stylegan2", "--batch=8", "--mirror=1", "--kimg=1.5", f"--data={tmp_path}/a.zip",
    }  # fmt: skip
    assert (two.source, two.resume) == ("one", "one")
    assert {"--batch=16", "--source-noise=0.1", "--stage-cache=64"} <= set(two.arguments({}))
    assert "--source=x.pkl" in two.arguments({"source": "x.pkl"})
    assert three.settings["data"] == f"{tmp_path}/b.zip,{tmp_path}/c.zip"
    assert three.settings["source_noise"] == "0"
    assert other.source is None and "stage_cache" not in other.settings and other.settings["source_noise"] == "0.1"
    assert recipe.table == ("fid1k",)


def test_the_lineage_is_that_of_the_last_stage(write):
    recipe = read_recipe(write(THREE))
    assert [stage.name for stage in recipe.lineage()] == ["other"]
    recipe = read_recipe(write(THREE.replace("  - {name: other, source: a.zip, data: c.zip}\n", "")))
    assert [stage.name for stage in recipe.lineage()] == ["one", "two", "three"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
STAGE = "{name: one, data: a.zip}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("---\n---\n", "is no YAML that a recipe can be"),
        ("stages: [", "line 1: is no YAML"),
        ("\tstages: 1", "is no YAML"),
        (b"\xff\xfe\x00stages", "is no YAML"),
        (b"\x89PNG\r\n\x1a\n", "is no YAML"),
        (b"stages: \x00", "is no YAML"),
        ("[" * 5000, "is no YAML"),
        ("{a: " * 5000, "is no YAML"),
        ("stages: !!python/object/apply:os.system [ls]", "is no YAML"),
        ("stages: " + "9" * 5000, "is no YAML"),
        ("stages: 2024-13-45", "is no YAML"),
        (BOMB, "line 2: is no YAML that a recipe can be: anchors and aliases"),
        (MERGE_BOMB, "anchors and aliases (&, *) are not taken"),
        ("a: &a [*a]", "anchors and aliases"),
        ("just words", "a recipe is a mapping with defaults and stages, not a text"),
        ("[1, 2]", "not a list"),
        ("stages: []", "stages must be a list of at least one stage"),
        ("defaults: {}", "stages must be a list of at least one stage, not nothing"),
        ("stages: {one: {}}", "not a mapping"),
        (f"stagess: [{STAGE}]", "stagess is not one of defaults, stages, table (did you mean stages?)"),
        (f"stages: [{STAGE}]\nstages: [{STAGE}]", "line 2: is no YAML that a recipe can be: stages is given twice"),
        ("stages: [one]", "stage 1: must be keys with values"),
        (f"defaults: [x]\nstages: [{STAGE}]", "defaults: must be keys with values"),
        (f"defaults: {{kimgs: 1}}\nstages: [{STAGE}]", "defaults: kimgs is not a flag of train.py (did you mean kimg?)"),
        ("stages: [{name: one, data: a.zip, bacth: 3}]", "stage one: bacth is not a flag of train.py (did you mean batch?)"),
        ("stages: [{name: one, data: a.zip, outdir: x}]", "outdir is not of a stage; the cascade names its folders"),
        ("stages: [{name: one, data: a.zip, batch-gpu: 1, batch_gpu: 2}]", "batch-gpu is given twice"),
        ("stages: [{name: one, data: a.zip, batch: 1, batch: 2}]", "batch is given twice"),
        ("stages: [{name: one, data: a.zip, 3: 4}]", "stage one: 3 is not a flag"),
        ("stages: [{data: a.zip}]", "stage 1 has no name"),
        ("stages: [{name: 7, data: a.zip}]", "stage 1: name must be a word"),
        ("stages: [{name: ../up, data: a.zip}]", "stage 1: name must be a word"),
        ("stages: [{name: noise, data: a.zip}]", "none of auto, latest, noise, none"),
        (f"stages: [{STAGE}, {STAGE}]", "two stages are named one"),
        ("stages: [{name: one, data: a.zip, batch: {a: 1}}]", "stage one: batch must be a single value, not a mapping"),
        ("stages: [{name: one, data: a.zip, batch: [1]}]", "stage one: batch must be a single value, not a list"),
        ("stages: [{name: one, data: a.zip, batch: }]", "stage one: batch must be a single value, not nothing"),
        ("stages: [{name: one, data: a.zip, kimg: 2024-01-01}]", "a number or date"),
        ("stages: [{name: one, data: [a.zip, 3]}]", "data must be a single value or a list of names"),
        ("stages: [{name: one, data: a.zip, source: one}]", "feed each other in a circle: one <- one"),
        (
            f"stages: [{STAGE}, {{name: two, data: a.zip, source: four}}, {{name: three, data: a.zip, source: two}}, "
            "{name: four, data: a.zip, resume: three}]",
            "stage two: source: the stages feed each other in a circle: two <- four <- three <- two",
        ),
        ("stages: [{name: two, data: a.zip, source: one}, {name: one, data: a.zip}]", "one comes later; move it before two"),
        (
            "stages: [{name: one, data: a.zip, prior: features}, {name: two, data: a.zip, source: one}]",
            "stage two: source: one has prior: features, and would be asked for images without saying of what",
        ),
        (
            "defaults: {source_match: csid, cond: 1}\n"
            "stages: [{name: one, data: a.zip, source: a.zip}, {name: two, data: a.zip, source: one}]",
            "stage two: source: one has source_match: csid",
        ),
        (f"stages: [{STAGE}, {{name: two, data: b.zip, source: oen}}]", "oen is neither an earlier stage nor a file (did you"),
        (f"stages: [{STAGE}, {{name: two, data: b.zip, resume: no.pkl}}]", "resume: no.pkl is neither an earlier stage nor"),
        (f"stages: [{STAGE}, {{name: two, source: one}}]", "stage two: data is missing"),
        (f"stages: [{STAGE}, {{name: two, data: b.zip, resume: latest}}]", "latest is not needed"),
        (f"stages: [{STAGE}, {{name: two, data: b.zip, resume: .}}]", "is a folder"),
        ("stages: [{name: both, data: a.zip}, {name: two, source: both, data: b.zip}]", "is a stage and a file"),
        (f"stages: [{STAGE}]\ntable: fid5", "table: fid5 is not known"),
        (f"stages: [{STAGE}]\ntable: {{a: 1}}", "table must be a single value or a list of names"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(write, text, words):
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        read_recipe(write(text))
    message = str(caught.value)
    assert words in message
    assert message.startswith("--cascade=") and "recipe.yaml: " in message and "\n" not in message.strip()
    assert time.process_time() - started < 5


def test_the_file_itself(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_recipe(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="is no file"):
        read_recipe(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2 << 20))
    with pytest.raises(UserError, match="larger than 1 MB"):
        read_recipe(large)


def test_files_are_found_from_the_folder_of_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("stages: [{name: one, data: 'x-{0..2}.zip', source: http://x/y.zip}]")
    monkeypatch.chdir(tmp_path)
    (stage,) = read_recipe("recipe.yaml").stages
    assert stage.settings["data"] == "x-{0..2}.zip"
    assert stage.settings["source"] == "http://x/y.zip"


def test_the_example_is_a_recipe():
    recipe = read_recipe(ROOT / "examples" / "cascade.yaml")
    assert [stage.name for stage in recipe.lineage()] == ["objects", "photos", "emoji"]
    assert recipe.stages[0].settings.get("stage_cache") is None and recipe.stages[2].settings["stage_cache"] == "4096"
