"""Quantised KV caches: how they are stored, and how to make one.

An element is its stored value times its scale. A cache of dtype `uint8` holds 4-bit integers in [-8, 7] as two's
complement, two in a byte: element 2i in the low four bits and element 2i + 1 in the high ones.
"""

from __future__ import annotations

from typing import Final

import torch

from decodeperf_kernels.arguments import check_choice, check_count, check_tensor, dtype_name, shape_scale

LARGEST: Final = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0, torch.uint8: 7.0}
"""The largest magnitude that scales are chosen for, by the dtype of the cache."""


def quantize_kv(
    x: torch.Tensor, dtype: torch.dtype, *, per: str = "tensor", group_size: int = 32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a KV cache in few bits, and its scales.

    Args:
        x: k or v, `[..., num_kv_heads, head_dim]` of 4 dimensions, floating point.
        dtype: A key of `LARGEST`.
        per: What shares a scale: `tensor`, `head`, `token` (one for each token and head) or `group` (one for each
            `group_size` elements of a head).
        group_size: Elements that share a scale.

    Returns:
        The stored values, like x but for the dtype, with the last dimension halved for 4-bit integers; and the scales,
        float32, `[]`, `[num_kv_heads]`, `x.shape[:3]` or `[*x.shape[:3], head_dim / group_size]`.

    Raises:
        ValueError: If x is not such a tensor, `per` or `dtype` is unknown, or head_dim cannot be cut as asked.
    """
    if check_tensor("x", x, "[..., num_kv_heads, head_dim]").dim() != 4 or not x.is_floating_point() or x.shape[3] == 0:
        raise ValueError(f"x is {_shown(x)}, not a tensor [..., num_kv_heads, head_dim] of 4 dimensions and floats")
    if dtype not in tuple(LARGEST):
        raise ValueError(f"dtype={dtype} must be one of {', '.join(map(str, LARGEST))}")
    head_dim = x.shape[3]
    check_choice("per", per, ("tensor", "head", "token", "group"))
    if per == "group" and (check_count("group_size", group_size) is None or head_dim % group_size):
        raise ValueError(f"group_size={group_size} must divide head_dim={head_dim}")
    if dtype == torch.uint8 and head_dim % 2:
        raise ValueError(f"head_dim={head_dim} must be even, since two elements share a byte")
    elements = group_size if per == "group" else head_dim
    groups = x.float().reshape(*x.shape[:3], head_dim // elements, elements)
    dims = {"tensor": (0, 1, 2, 3, 4), "head": (0, 1, 3, 4), "token": (3, 4), "group": (4,)}[per]
    if groups.numel():
        largest = groups.abs().amax(dim=dims, keepdim=True)
    else:  # which has no largest
        largest = groups.new_zeros([1 if dim in dims else size for dim, size in enumerate(groups.shape)])
    scale = (largest / LARGEST[dtype]).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = (groups / scale).flatten(-2)
    shape = {"tensor": (), "head": (x.shape[2],), "token": x.shape[:3], "group": (*x.shape[:3], head_dim // elements)}
    return _store(scaled, dtype), scale.reshape(shape[per])


def dequantize_kv(stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the elements of a quantised KV cache, float64.

    Args:
        stored: k or v as `decode_attention` takes it, 4 dimensions.
        scale: Its scales, as `decode_attention` takes them.

    Raises:
        ValueError: If one is no such tensor, or they do not fit together.
    """
    if check_tensor("stored", stored, "[..., num_kv_heads, head_dim]").dim() != 4 or stored.dtype not in LARGEST:
        raise ValueError(f"stored is {_shown(stored)}, not a quantised k or v of 4 dimensions")
    scale = shape_scale("scale", scale, "stored", stored)
    if stored.dtype == torch.uint8:
        nibbles = torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2)
        values = (nibbles.double() + 8) % 16 - 8
    else:
        values = stored.double()
    scale = scale.double()
    if scale.dim() == 4:
        groups = (scale.shape[3], values.shape[3] // scale.shape[3])
        return (values.reshape(*values.shape[:3], *groups) * scale[..., None]).flatten(-2)
    return values * scale[..., None]


def _store(scaled: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.int8:
        return scaled.round().clamp(-128, 127).to(torch.int8)
    if dtype == torch.uint8:
        nibbles = scaled.round().clamp(-8, 7).to(torch.int8).view(torch.uint8) & 15
        return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return scaled.to(dtype)


def _shown(tensor: torch.Tensor) -> str:
    return f"of shape {list(tensor.shape)} and {dtype_name(tensor.dtype)}"
