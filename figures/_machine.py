"""What computes: results say it."""

import platform
import re
from pathlib import Path

import torch


def machine() -> str:
    """The GPU's name, or the processor's and the threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    known = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", known.read_text(), re.MULTILINE) if known.exists() else None
    return f"{named[1] if named else platform.machine()}, {torch.get_num_threads()} threads"
