"""The options of train.py: declared whole, and refused where they contradict each other."""

import pytest

from dnnlib.errors import UserError
from tools import options_page
from training.config import options
from training.config.flags import OnResume
from training.config.options import FLAGS, TrainingOptions, check_together


def test_every_option_says_what_it_is():
    """Its sentence, what resuming does with it, and, of a text, whether it is a path, a choice or free."""
    for name, flag in FLAGS.items():
        assert flag.help and isinstance(flag.on_resume, OnResume), name
        is_text = (
            str in (options.TYPES[name], *options.TYPES[name].__args__) if "|" in str(options.TYPES[name]) else False
        )
        assert not is_text or flag.path or flag.choices or flag.pattern, name


def test_the_page_is_that_of_the_declarations():
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page(), "python -m tools.options_page"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"p": 0.5}, "--p=0.5: needs --aug=fixed"),
        ({"target": 0.5, "aug": "fixed"}, "--target=0.5: needs --aug=ada"),
        ({"augpipe": "blit", "aug": "noaug"}, "--augpipe=blit: is for --aug=ada and --aug=fixed"),
        ({"source_norm": "whiten"}, "--source-norm=whiten: needs --source="),
        ({"source_norm": "whiten", "source": "a.zip", "data": None}, "--source-norm=whiten: needs --source="),
        ({"source_noise": 0.5, "source": "noise"}, "--source-noise=0.5: needs --source="),
        ({"source_match": "csid"}, "--source-match=csid: needs --source="),
        ({"source_pool": ("a.zip", "b.zip")}, "--source-pool=a.zip,b.zip: is for --source=auto"),
        ({"stage_cache": 99}, "--stage-cache=99: needs --source=SNAPSHOT.pkl"),
        ({"coreset_factor": 5}, "--coreset-factor=5: needs --coreset"),
        ({"detector_weights": "/nowhere.pth"}, "--detector-weights=/nowhere.pth: is read by nothing here"),
        ({"prior_dim": 3}, "--prior-dim=3: needs --prior=features"),
        ({"prior": "features", "cond": True}, "--prior=features: conditions on features, and --cond=1 on labels"),
        ({"resume_optimizer": True}, "--resume-optimizer=1: needs --resume=network-snapshot"),
        (
            {"resume_augment": True, "resume": "a.pkl", "aug": "fixed"},
            "--resume-augment=1 takes over what --aug=ada adapts",
        ),
        ({"pretrain": 1, "resume": "a.pkl"}, "--pretrain=1: would train the weights of --resume anew"),
        ({"cfg": "dcgan", "w_dim": 64}, "--w-dim=64: --cfg=dcgan has no such thing"),
        ({"grow_kimg": 5}, "--grow-kimg=5: --cfg=stylegan2 has no such thing"),
    ],
)
def test_flags_that_mean_nothing_beside_the_others_are_refused(given, words):
    """They were passed over in silence, all but a few."""
    asked = TrainingOptions(**{"cfg": "stylegan2", "data": "a.zip", **given})
    with pytest.raises(UserError) as refused:
        check_together(asked)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    "given",
    [
        {}, {"aug": "fixed", "p": 0.5}, {"target": 0.5}, {"source": "b.zip", "source_norm": "whiten"},
        {"source": "auto", "source_pool": ("b.zip",), "source_noise": 0.1}, {"stage_cache": 0},
        {"metrics": ("fid1k",), "detector_weights": "x.pth"}, {"prior": "features", "prior_dim": 3},
        {"resume": "a.pkl", "resume_augment": True, "resume_optimizer": True}, {"source_encoder": "identity"},
    ],
)  # fmt: skip
def test_flags_that_belong_together_are_taken(given):
    check_together(TrainingOptions(**{"cfg": "stylegan2", "data": "a.zip", **given}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch": 0}, "--batch=0 must be at least 1"),
        ({"kimg": 0}, "--kimg=0 must be positive"),
        ({"kimg": float("inf")}, "--kimg=inf must be a finite number"),
        ({"gamma": -1}, "--gamma=-1 must not be negative"),
        ({"p": 1.5}, "--p=1.5 must be from 0 to 1"),
        ({"coreset_factor": 1}, "--coreset-factor=1 must be from 2 to 64"),
        ({"data": ""}, "--data= is empty; give a path"),
        ({"desc": "a/b"}, "--desc=a/b must be at most 100 characters, no slashes"),
        ({"loss": "best"}, "--loss=best: choose from logistic"),
        ({"coreset": ("all",)}, "--coreset=all: choose from prior, target"),
    ],
)
def test_ranges(given, words):
    with pytest.raises(UserError) as refused:
        TrainingOptions(**{"cfg": "stylegan2", "data": "a.zip", **given})
    assert str(refused.value).startswith(words)
