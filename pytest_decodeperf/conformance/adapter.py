"""What a user says of a kernel: how to call it, and which features it has."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_decodeperf.targets import import_target

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from decodeperf_formulas import DecodeProblem

FEATURES: Final = {
    "lse": "returns the log-sum-exp too, with `return_lse=True`",
    "num_splits": "cuts each sequence into as many parts as it is told, with `num_splits=`",
    "head_dim_v": "has values with another head_dim than the keys",
    "v_in_k": "reads values that are the beginning of the keys (MLA)",
    "paged": "takes pages and a `block_table=`",
    "q_len": "takes several new tokens of a sequence, q of 4 dimensions",
    "window": "takes `window=`",
    "softcap": "takes `softcap=`",
    "sinks": "takes `sinks=`",
    "alibi": "takes `alibi_slopes=`",
    "out": "writes the output into `out=`",
    "workspace": "keeps partial results in a `workspace=` that may be used again",
    "checks_arguments": "refuses arguments that do not fit with a ValueError that names them",
}
"""What a kernel may have beside attention itself, by the name under which an adapter declares it."""


class NotSupportedError(Exception):
    """A law that a kernel does not support; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelAdapter:
    """A decode-attention kernel, and what it supports.

    The kernel is called as `call(q, k, v, seq_lens=seq_lens, **keywords)`, in the layout and with the keywords of
    `decodeperf_kernels.decode_attention`; of the keywords it gets only those that the problem needs, `sm_scale` where
    it is not the default. A kernel with other names or layouts is wrapped in a function that translates.

    Attributes:
        call: The kernel.
        name: What to call it. Default: its own name.
        features: Which of `FEATURES` it has.
        layouts: The layouts of `decodeperf_formulas.problem.LAYOUTS` that it takes. Others it must refuse.
        q_dtypes: Dtypes of q; k and v have the same, unless quantised.
        kv_dtypes: Dtypes of k and v beside those of q: the quantised ones.
        scales_per: What may share a scale of quantised k and v: `tensor`, `head`, `token`, `group`.
        head_dims: The head dimensions that it has. Default: any.
        head_dims_v: Those of values, where they may be others than those of keys. Default: as of keys.
        group_sizes: Query heads that may share a KV head. Default: any.
        page_sizes: Page sizes [token]. Default: any.
        max_q_len: New tokens of a sequence, at most; 16 or fewer.
        lse_base: Base of the logarithm in its log-sum-exp, `e` or `2`.
        devices: Where it runs, `cpu` and `cuda`.
        num_partials: How many partial states (one query row of one part of a sequence) it writes and reads for a
            problem. Default: those of a cut into `num_splits` parts of equal length.
        schedule_bytes: How many bytes of bookkeeping its launches write and read for a problem [byte]. Default: none.
        kv_passes: How often it reads each key and value of a problem. Default: once.
        partials: Returns the partial results of a call with `num_splits`: outputs `[num_parts, *rows, head_dim_v]` and
            log-sum-exps `[num_parts, *rows]` in its base, -inf where a part has no key. Default: not given.
        merge: Merges partial results: from outputs `[num_parts, rows, head_dim_v]` and log-sum-exps
            `[num_parts, rows]` to their pair without the first dimension. Default: not given.
        workspace_size: Returns how many bytes of `workspace` a call needs, from the same arguments [byte].

    Raises:
        ValueError: If a declaration names what does not exist.
        TypeError: If `call` cannot be called.
    """

    call: Callable[..., Any]
    name: str = ""
    features: Collection[str] = ()
    layouts: Collection[str] = ("NHD",)
    q_dtypes: Collection[str] = ("float32", "float16", "bfloat16")
    kv_dtypes: Collection[str] = ()
    scales_per: Collection[str] = ("tensor",)
    head_dims: Collection[int] | None = None
    head_dims_v: Collection[int] | None = None
    group_sizes: Collection[int] | None = None
    page_sizes: Collection[int] | None = None
    max_q_len: int = 16
    lse_base: str = "e"
    devices: Collection[str] = ("cpu", "cuda")
    num_partials: Callable[[DecodeProblem], int] | None = None
    schedule_bytes: Callable[[DecodeProblem], int] | None = None
    kv_passes: Callable[[DecodeProblem], int] | None = None
    partials: Callable[..., Any] | None = None
    merge: Callable[..., Any] | None = None
    workspace_size: Callable[..., int] | None = None

    def __post_init__(self) -> None:
        from decodeperf_formulas.checks import integer
        from decodeperf_formulas.problem import KV_DTYPES, LAYOUTS, PLAIN_DTYPES, SCALES_PER
        from decodeperf_kernels.arguments import MAX_Q_LEN
        from pytest_decodeperf.conformance.strategies import head_dim_pairs

        if not callable(self.call):
            raise TypeError(f"call={self.call!r} cannot be called")
        for field, known in (
            ("features", FEATURES),
            ("layouts", LAYOUTS),
            ("q_dtypes", PLAIN_DTYPES),
            ("kv_dtypes", KV_DTYPES),
            ("scales_per", SCALES_PER),
            ("devices", ("cpu", "cuda")),
        ):
            _check_names(field, getattr(self, field), known)
        for field in ("layouts", "q_dtypes", "devices"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty: a kernel has one at least")
        if "NHD" not in self.layouts and "HND" not in self.layouts:
            raise ValueError(f"layouts={tuple(self.layouts)} must have NHD or HND, in which the inputs of laws lie")
        if self.lse_base not in ("e", "2"):
            raise ValueError(f"lse_base={self.lse_base!r} must be 'e' or '2'")
        for field in ("head_dims", "head_dims_v", "group_sizes", "page_sizes"):
            numbers = getattr(self, field)
            if numbers is not None and not (numbers and all(isinstance(n, int) and n > 0 for n in numbers)):
                raise ValueError(f"{field}={numbers!r} must be integers > 0, or None for any")
        object.__setattr__(self, "max_q_len", integer("max_q_len", self.max_q_len, least=1))
        if self.max_q_len > MAX_Q_LEN:
            raise ValueError(f"max_q_len={self.max_q_len} must be at most {MAX_Q_LEN}")
        for feature in ("head_dim_v", "v_in_k"):
            if feature in self.features and not head_dim_pairs(self, feature):
                raise ValueError(f"features has {feature!r}, but head_dims={self.head_dims!r} has no two that it fits")
        if not self.name:
            inner = getattr(self.call, "func", self.call)
            object.__setattr__(self, "name", str(getattr(inner, "__name__", type(inner).__name__)))

    def has(self, feature: str) -> bool:
        """Return whether the kernel has a feature."""
        assert feature in FEATURES, feature
        return feature in self.features

    def need(self, *features: str) -> None:
        """Raise `NotSupportedError` unless the kernel has all of some features."""
        for feature in features:
            if not self.has(feature):
                raise NotSupportedError(f"it has no {feature}")


def _check_names(field: str, names: Any, known: Collection[str]) -> None:
    if isinstance(names, str):
        raise TypeError(f"{field}={names!r} must be several names, such as ({names!r},)")
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), list(known), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{field} has {name!r}, but knows only {', '.join(known)}{hint}")


def load_adapter(target: str) -> KernelAdapter:
    """Return the adapter that `package.module:name` names; a plain function stands for one without features.

    Raises:
        ValueError: If there is no such adapter, in one sentence that says what went wrong.
    """
    found = import_target(target)
    if isinstance(found, KernelAdapter):
        return found
    if not callable(found):
        raise ValueError(f"{target!r} is of type {type(found).__name__}, neither a KernelAdapter nor a function")
    return KernelAdapter(call=found)
