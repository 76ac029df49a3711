"""The guides are true: each is followed from its first block to its last, as it stands, in a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("guide_*.md"))
NEEDS = {"guide_gguf": "gguf"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(guide):
    return BLOCK.findall(guide.read_text())


def script_of(guide):
    """All blocks in one session of a shell, each language after the other as they stand; Python shares one session, too."""
    found = blocks(guide)
    python = [code for language, code in found if language == "python"]
    if all(language == "python" for language, _ in found):
        return f"python - <<'END_OF_PYTHON'\n{''.join(python)}END_OF_PYTHON\n"
    return "\n".join(
        code if language == "bash" else f"python - <<'END_OF_PYTHON'\n{code}END_OF_PYTHON" for language, code in found
    )


def test_there_are_guides_and_their_blocks_are_commands_or_python():
    assert [guide.stem for guide in GUIDES] == ["guide_gguf", "guide_notebook", "guide_server"]
    for guide in GUIDES:
        assert blocks(guide) and {language for language, _ in blocks(guide)} <= {"bash", "python"}, guide.name


@pytest.mark.slow  # A minute or more for each, on a slow machine.
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_can_be_followed_to_its_end(guide, tmp_path):
    pytest.importorskip(NEEDS.get(guide.stem, "shoal"))
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, run in {"shoal": "-m shoal", "python": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {run} "$@"\n')
        (tools / name).chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    (place / "src").symlink_to(ROOT / "src")
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script_of(guide)], cwd=place, env=environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
