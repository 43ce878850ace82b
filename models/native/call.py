"""Calls of native code: a shape, pointers to the numbers of tensors, and torch's number of threads."""

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from models.native.library import UnavailableError, loaded_library


def call(name: str, shape: ctypes.Structure, *tensors: "Tensor | ctypes.Array[ctypes.c_void_p]") -> int:
    """Calls ``name(shape, tensors .., threads)``; RuntimeError without a library, for which callers look before."""
    loaded = loaded_library()
    if isinstance(loaded, UnavailableError):
        raise RuntimeError(str(loaded))
    pointers = (ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in tensors)
    found: int = getattr(loaded, name)(ctypes.byref(shape), *pointers, ctypes.c_int64(torch.get_num_threads()))
    return found


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def pointer_array(pointers: Iterable[int | None]) -> "ctypes.Array[ctypes.c_void_p]":
    found = list(pointers)
    return (ctypes.c_void_p * len(found))(*found)
