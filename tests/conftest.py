import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["COLUMNS"] = "140"  # tables are laid out alike in every runner
sys.path.insert(0, str(Path(__file__).parent))
