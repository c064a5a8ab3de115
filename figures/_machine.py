"""What computes: results say it."""

import platform

import torch


def machine() -> str:
    """The GPU's name, or the processor and the threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
