"""The soak's short form; ``bash launch/soak.sh`` is the long one."""

import json

import soak


def test_a_killed_run_ends_as_one_left_in_peace(tmp_path):
    """State that is in no checkpoint, or in one twice: each kill moves the run away from the one that never stopped."""
    assert soak.main(["--steps=6", "--kills=2", "--minutes=8", f"--out={tmp_path / 'soak'}"]) == 0
    found = json.loads((tmp_path / "soak/soak.json").read_text())
    assert found["kills"] == 2 and found["resumes"] >= 2 and found["differs in"] == []
