"""What a stream begins with, and what tells one model from another."""

import copy
import hashlib
import re
import struct
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nbvae import checks
from nbvae._measuring import check_model

_FIXED, RANKS = struct.Struct("<4sBBIII8s8s"), 6
_CHECK = 8


@dataclass(frozen=True)
class Header:
    """What a lossless stream says of itself; `initial` is the number of words that were on the stack before the images."""

    magic: bytes
    version: int
    levels: int
    count: int
    initial: int
    model: bytes
    images: bytes
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes, with the check of the whole stream."""
        return _FIXED.size + 4 * len(self.shape) + _CHECK

    def sealed(self, content: bytes) -> bytes:
        """The stream: this header, a hash of all else, the content."""
        fixed = _FIXED.pack(
            self.magic, self.version, len(self.shape), self.levels, self.count, self.initial, self.model, self.images
        )
        head = fixed + struct.pack(f"<{len(self.shape)}I", *self.shape)
        return head + hashlib.sha256(head + content).digest()[:_CHECK] + content

    @classmethod
    def opened(cls, data: Any, magic: bytes, version: int) -> tuple["Header", bytes]:
        """The header of a stream that is whole, and what follows; `ValueError` for any other."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"a stream is bytes, got {type(data).__name__}")
        data = bytes(data)
        if not data.startswith(magic):
            raise ValueError(
                f"this is no stream of the kind {magic.decode()}: it {'is empty' if not data else 'begins with another mark'}"
            )
        if len(data) <= len(magic) or data[len(magic)] != version:
            raise ValueError(f"the stream is of another version than {version}, or cut")
        if len(data) < _FIXED.size or not 0 < data[5] <= RANKS:
            raise ValueError("the stream is cut or altered: its header is not whole")
        _, _, rank, levels, count, initial, model, images = _FIXED.unpack_from(data)
        end = _FIXED.size + 4 * rank
        content = data[end + _CHECK :]
        if hashlib.sha256(data[:end] + content).digest()[:_CHECK] != data[end : end + _CHECK]:
            raise ValueError("the stream is cut or altered: its checksum is another")
        shape = struct.unpack(f"<{rank}I", data[_FIXED.size : end])
        return cls(magic, version, levels, count, initial, model, images, shape), content


def frozen(model: Any) -> Any:
    """A copy of the model on the CPU, in float64 and evaluation mode; `ValueError` for what is no torch module."""
    check_model(model)
    if not isinstance(model, nn.Module):
        raise ValueError(f"only a model that is a torch module can code, for its hash: {type(model).__name__} is none")
    return copy.deepcopy(model).cpu().double().eval().requires_grad_(False)


def hash_of(model: nn.Module) -> bytes:
    """Eight bytes that tell this model from others: of its parts and settings and of every number in it, in float64."""
    described = re.sub(r"0x[0-9a-f]+", "", f"{type(model).__module__}.{type(model).__qualname__}\n{model!r}")
    found = hashlib.sha256(described.encode())
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, value in sorted(tensors, key=lambda each: each[0]):
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(little(value.detach().cpu().double().numpy(), "<f8"))
    return found.digest()[:8]


def little(values: np.ndarray, kind: str) -> bytes:
    """The values as bytes, the same on every machine."""
    return np.ascontiguousarray(values).astype(kind).tobytes()


def words_of(content: bytes) -> np.ndarray:
    """The words of a stack, of bytes."""
    words = np.frombuffer(content, "<u4")
    return words.astype(np.uint32) if sys.byteorder == "little" else words.byteswap().view(np.uint32)


def images_given(images: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """The images, on the CPU in float32, if they are some of that shape."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images)) if images.dtype.kind in "biuf" else None
    if not isinstance(images, torch.Tensor) or images.is_complex():
        raise ValueError(f"images must be a tensor or an array of real numbers, got {checks.short(images)}")
    if images.dim() != len(shape) + 1 or tuple(images.shape[1:]) != shape or not len(images):
        sides = ", ".join(map(str, shape))
        raise ValueError(f"images must have the shape (n, {sides}), n >= 1, as the model's; got {tuple(images.shape)}")
    if len(images) >= 2**32:
        raise ValueError("one stream holds at most 2³² − 1 images")
    return images.detach().cpu().float()
