import subprocess
import sys
from pathlib import Path

from tokenprune import __version__

CITATION = Path(__file__).parents[1] / "CITATION.cff"


def test_citation_validates_and_names_this_version():
    call = [sys.executable, "-c", "from cffconvert.cli.cli import cli; cli()", "--validate", "-i", str(CITATION)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout
    assert f"\nversion: {__version__}\n" in CITATION.read_text()
