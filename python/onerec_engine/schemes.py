"""Quantisation schemes: one registered class each, and how `config.json` names them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from onerec_engine._json import quote
from onerec_engine._native import require_native
from onerec_engine.errors import ConfigError
from onerec_engine.weights import QUANTIZED_DTYPE, Kind, TensorSpec

__all__ = ["QuantizationScheme", "get_scheme", "register", "scheme_from_config", "scheme_names"]

BLOCK = 128
"""Rows and columns that share a scale under ``block``."""

Granularity = Literal["channel", "block"]


class QuantizationScheme(ABC):
    """How the weights of a model are turned into codes and scales.

    Attributes:
        name: what `Engine.from_checkpoint(quantization=...)` and ``onerec-engine quantize --scheme`` call it.
        precision: the engine's precision that multiplies such weights.
        experts: granularity of the routed experts' scales.
        dtype: the codes' dtype in a checkpoint.
    """

    name: ClassVar[str]
    precision: ClassVar[str]
    experts: ClassVar[Granularity]
    dtype: ClassVar[str]

    @abstractmethod
    def granularity(self, kind: Kind) -> Granularity | None:
        """How weights of a kind share scales; None for those that stay as they are."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The `quantization_config` of a checkpoint quantised so."""

    def scales_spec(self, spec: TensorSpec) -> TensorSpec | None:
        """The float32 companion ``X_scale`` of a weight X, or None where it is not quantised."""
        granularity = self.granularity(spec.kind) if len(spec.shape) == 2 else None
        if granularity is None:
            return None
        outputs, inputs = spec.shape
        shape = (outputs,) if granularity == "channel" else (-(-outputs // BLOCK), -(-inputs // BLOCK))
        return TensorSpec(f"{spec.name}_scale", shape, "vector")

    def quantize(
        self, spec: TensorSpec, values: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Codes [outputs, inputs] and scales of a weight, as loading it with this scheme would make them.

        Args:
            spec: a tensor that `scales_spec` has an answer for.
            values: its values [outputs, inputs].
        """
        require_native()
        from onerec_engine import _C

        return (_C.quantize_channel if self.granularity(spec.kind) == "channel" else _C.quantize_block)(values)


_SCHEMES: dict[str, QuantizationScheme] = {}


def register(scheme: type[QuantizationScheme]) -> type[QuantizationScheme]:
    """Class decorator that makes a scheme known under its name."""
    if scheme.name in _SCHEMES:
        raise ValueError(f"[quantization] got a second scheme named {scheme.name!r}. Choose another name.")
    _SCHEMES[scheme.name] = scheme()
    return scheme


def scheme_names() -> tuple[str, ...]:
    """The names of all schemes."""
    return tuple(_SCHEMES)


def get_scheme(name: str) -> QuantizationScheme:
    """The scheme of a name.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(name, str) or name not in _SCHEMES:
        raise ValueError(f"[quantization] got {quote(name)}, want None or one of {list(_SCHEMES)}.")
    return _SCHEMES[name]


def scheme_from_config(config: Mapping[str, Any] | None) -> QuantizationScheme | None:
    """The scheme that `config.json`'s `quantization_config` describes; None without one.

    Raises:
        ConfigError: if it describes none that is known.
    """
    if config is None:
        return None
    for scheme in _SCHEMES.values():
        want = scheme.to_config()
        given = dict(config)
        # Which modules stay as they are follows from the method; a file need not repeat it.
        kept = given.setdefault("modules_to_not_convert", want["modules_to_not_convert"])
        if isinstance(kept, (list, tuple)) and all(isinstance(name, str) for name in kept):
            given["modules_to_not_convert"] = sorted(kept)
        if given == want | {"modules_to_not_convert": sorted(want["modules_to_not_convert"])}:
            return scheme
    known = [scheme.to_config() for scheme in _SCHEMES.values()]
    raise ConfigError(f"[config] got quantization_config {quote(dict(config), 400)}, want one of {known}.")


class _Fp8(QuantizationScheme):
    """E4M3 after "Quantized Inference for OneRec-V2" (arXiv 2603.11486); activations are quantised as they come."""

    precision = "fp8"
    dtype = QUANTIZED_DTYPE

    def granularity(self, kind: Kind) -> Granularity | None:
        if kind == "linear":
            return "channel"
        return self.experts if kind == "expert" else None

    def to_config(self) -> dict[str, Any]:
        return {
            "quant_method": "onerec_fp8",
            "format": "e4m3",
            "linear": "channel",
            "experts": self.experts,
            "activation_scheme": "dynamic",
            "modules_to_not_convert": ["context", "lm_heads", "mlp.gate"],
        }


@register
class Fp8(_Fp8):
    """The paper's scheme: linears per output channel and token, routed experts 128 x 128 and 1 x 128."""

    name = "fp8"
    experts: ClassVar[Granularity] = "block"


@register
class Fp8Channel(_Fp8):
    """Routed experts per output channel and token like all other linears."""

    name = "fp8_channel"
    experts: ClassVar[Granularity] = "channel"
