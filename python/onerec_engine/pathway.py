"""The context's token streams as `config.json` describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from onerec_engine._json import quote
from onerec_engine.errors import ConfigError

__all__ = ["CategoricalField", "DenseField", "Pathway", "read_pathway"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalField:
    """An embedded categorical feature of a context token.

    Attributes:
        name: the feature's name inside its pathway.
        num_embeddings: rows of the embedding table; a request's ids are in [0, num_embeddings).
        embedding_dim: columns of the embedding table.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    kind: Literal["categorical"] = "categorical"

    @property
    def width(self) -> int:
        """Columns this field adds to the concatenated token embedding."""
        return self.embedding_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseField:
    """Raw real-valued features of a context token, concatenated as they are.

    Attributes:
        name: the feature's name inside its pathway.
        dim: how many values a token carries.
    """

    name: str
    dim: int
    kind: Literal["dense"] = "dense"

    @property
    def width(self) -> int:
        """Columns this field adds to the concatenated token embedding."""
        return self.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Pathway:
    """One stream of context tokens with its own projection (OneRec-V2 report, context processor).

    A token's input is the concatenation, in this order, of one `embed_dim`-wide embedding per semantic-id
    level (`kind="items"` only; the tables are shared by all pathways) and of `fields`.
    The input goes through the linears ``input -> hidden_sizes[0] -> ... -> d_context`` with LeakyReLU
    between them (none after the last), and the position embedding's row is added to the result.

    Attributes:
        name: unique; letters, digits and underscores.
        kind: ``items`` (a sequence of catalogue items) or ``static`` (exactly one token per request).
        source: for ``items``, where the item ids come from: ``history`` is `Request.history`, any other
            name is an entry of `Request.features`.
        max_tokens: how many of the newest tokens are kept; 1 for ``static``.
        position_embedding: ``recency`` (row 0 is the newest kept token), ``absolute`` (row 0 is the oldest
            kept token) or ``none``. The table has `max_tokens` rows of `d_context` columns.
        hidden_sizes: widths of the hidden linears; empty for V2's single linear.
        negative_slope: LeakyReLU's slope.
        bias: whether the linears have biases.
        fields: further features of each token.
    """

    name: str
    kind: Literal["items", "static"]
    source: str = "history"
    max_tokens: int = 1
    position_embedding: Literal["recency", "absolute", "none"] = "none"
    hidden_sizes: tuple[int, ...] = ()
    negative_slope: float = 0.01
    bias: bool = False
    fields: tuple[CategoricalField | DenseField, ...] = ()

    @property
    def categorical_fields(self) -> tuple[CategoricalField, ...]:
        """The categorical fields, in order."""
        return tuple(f for f in self.fields if isinstance(f, CategoricalField))

    @property
    def dense_fields(self) -> tuple[DenseField, ...]:
        """The dense fields, in order."""
        return tuple(f for f in self.fields if isinstance(f, DenseField))

    def to_dict(self) -> dict[str, Any]:
        """This pathway's entry in `config.json`."""
        lists = {"hidden_sizes": list(self.hidden_sizes), "fields": [dataclasses.asdict(f) for f in self.fields]}
        return {f.name: lists.get(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)}


def read_pathway(raw: Any, index: int) -> Pathway:
    """Reads entry `index` of `config.json`'s `pathways`.

    Raises:
        ConfigError: for unknown or missing fields, and for values of the wrong kind.
    """
    where = f"pathways[{index}]"
    if not isinstance(raw, Mapping):
        raise ConfigError(f"[config] got {where} = {quote(raw)}, want an object.")
    known = {f.name for f in dataclasses.fields(Pathway)}
    unknown = sorted(set(raw) - known)
    missing = sorted({"name", "kind"} - set(raw))
    if unknown or missing:
        raise ConfigError(f"[config] {where}: unknown fields {unknown}, missing fields {missing}.")
    values = dict(raw)
    for name in ("hidden_sizes", "fields"):
        if not isinstance(values.get(name, []), (list, tuple)):
            raise ConfigError(f"[config] {where}.{name}: got {quote(values[name])}, want a list.")
    values["hidden_sizes"] = tuple(values.get("hidden_sizes", ()))
    values["fields"] = tuple(_read_field(f, f"{where}.fields[{i}]") for i, f in enumerate(values.get("fields", ())))
    return Pathway(**values)


def _read_field(raw: Any, where: str) -> CategoricalField | DenseField:
    kinds: dict[str, type[CategoricalField] | type[DenseField]] = {"categorical": CategoricalField, "dense": DenseField}
    if not isinstance(raw, Mapping) or not isinstance(raw.get("kind"), str) or raw["kind"] not in kinds:
        raise ConfigError(f"[config] got {where} = {quote(raw)}, want an object whose kind is one of {sorted(kinds)}.")
    try:
        return kinds[raw["kind"]](**raw)
    except TypeError as error:
        raise ConfigError(f"[config] {where}: {error}.") from None
