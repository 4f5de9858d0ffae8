"""tools/fingerprint.py: the same twice, and another with another seed."""

from tools import fingerprint


def test_a_run_has_one_fingerprint_and_another_run_another(tmp_path):
    fingerprint.make_inputs(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fingerprint.train(
            tmp_path, name, [*fingerprint.RUNS["dcgan"], f"--seed={seed}", "--kimg=0.008", "--tick=0.008"]
        )
    first, same, other = (fingerprint.fingerprint(tmp_path / f"runs-{name}").split() for name in "abc")
    assert first == same
    assert all(one != another for one, another in zip(first[1::2], other[1::2], strict=True))
