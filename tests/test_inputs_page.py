"""The page of inputs quotes messages: they are those of the code."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_the_messages_on_the_page_are_those_of_the_code():
    """A page that promises what a later change has reworded sends people looking for a string that is nowhere."""
    source = "".join(path.read_text() for path in sorted(ROOT.glob("alphaalign_jax/**/*.py")))
    source = re.sub(r'"\s*\n\s*f?r?"', "", source)  # strings that go on in the next line
    rows = [line for line in (ROOT / "configs/inputs.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        message = row.split(" | ")[-1]
        fragments = [part for quoted in re.findall(r"`([^`]+)`", message) for part in quoted.split("…")]
        fragments = [part for part in fragments if len(part.strip()) > 3]
        assert fragments, row
        for fragment in fragments:
            assert fragment in source, f"{fragment!r} of {row}"
