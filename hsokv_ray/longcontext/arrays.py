"""Tensors as numpy arrays and back, without copies, also where numpy lacks the type or may not write."""

from typing import Any

import numpy as np
import torch


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return the contiguous array of a tensor, in main memory; bfloat16 as int16."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    """Return a tensor over the memory of `array`, as the type torch calls `dtype`; never write to it."""
    tensor = torch.from_numpy(np.asarray(_Writable(array)))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name of the type, as in "bfloat16"."""
    return str(dtype).removeprefix("torch.")


class _Writable:
    """An array that says it may be written: torch knows no other, and would warn."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__: dict[str, Any] = array.__array_interface__ | {"data": (address, False)}
