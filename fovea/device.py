"""Where a policy computes: the CPU, or a GPU that PyTorch finds. Anything else is refused before work begins. Loads torch only to look."""

from __future__ import annotations


def problem(device: str) -> str:
    """Why a run on `device` would be refused, and the likely cause; "" where it would not."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdigit() or device == kind) or kind == "cpu" != device:
        return f"device = {device!r}; expected 'cpu', 'cuda' or 'cuda:N'"
    if kind == "cpu":
        return ""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) < found:
        return ""
    if found:
        return f"device = {device!r}; expected a number below {found}, the GPUs that PyTorch finds here"
    likely = (
        f"PyTorch {torch.__version__} is a build without CUDA"
        if torch.version.cuda is None
        else "is the NVIDIA driver installed, and CUDA_VISIBLE_DEVICES not empty?"
    )
    return f"device = {device!r}; expected 'cpu', as PyTorch finds no GPU here: {likely}"


def check(device: str) -> None:
    """
    Raises:
      ValueError: with `problem`.
    """
    if why := problem(device):
        raise ValueError(why)
