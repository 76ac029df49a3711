"""What other libraries log and warn of does not reach the people who use the command; errors and Shoal's own words do."""

import os
import subprocess
import sys

SCRIPT = """
import logging, sys, warnings
sys.argv = ["shoal", "--version"]
from shoal.cli import main
try:
    main()
except SystemExit:
    pass
import transformers
warnings.warn("a future change", FutureWarning)
warnings.warn("deprecated", DeprecationWarning)
for name in ("torchao", "torch", "transformers", "transformers.modeling_utils", "datasets", "huggingface_hub"):
    logging.getLogger(name).warning("noise of %s", name)
logging.getLogger("torchao").error("an error")
"""


def run(*flags):
    done = subprocess.run([sys.executable, *flags, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_libraries_are_quiet_and_errors_are_not():
    assert run().strip() == "an error"


def test_signs_that_the_terminal_has_not_are_replaced():
    script = SCRIPT.split("import transformers")[0] + "print('\\u00b1 1'); print('\\ud800', file=sys.stderr)"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=ascii_only)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "? 1" and done.stderr.strip() == "?", done.stderr


def test_who_asks_for_warnings_gets_them():
    assert "a future change" in run("-W", "default")
