"""`generation_config.json`: what a checkpoint's author suggests for the search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onerec_engine._config_checks import is_int
from onerec_engine._json import JsonError, quote, read_json
from onerec_engine.errors import ConfigError

__all__ = ["GenerationDefaults", "load_generation_defaults"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Defaults of `Engine.generate`.

    Attributes:
        beam_width: beams kept after each level; None where the file does not say.
        num_results: items per request; None where the file does not say.
    """

    beam_width: tuple[int, ...] | None = None
    num_results: int | None = None


def load_generation_defaults(file: Path | None, levels: int) -> GenerationDefaults:
    """Reads `generation_config.json`; entries other than `beam_width` and `num_results` are passed over.

    Args:
        file: the file; None gives no defaults.
        levels: semantic-id levels of the model.

    Raises:
        ConfigError: if it is no JSON object or its values are no widths and counts.
    """
    if file is None:
        return GenerationDefaults()
    try:
        raw: Any = read_json(file)
    except (JsonError, FileNotFoundError) as error:
        raise ConfigError(f"[config] {file} {error}. Correct the file.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"[config] {file} is no JSON object. Correct the file.")
    width, results = raw.get("beam_width"), raw.get("num_results")
    widths = [width] * levels if is_int(width, 1, 1 << 20) else width
    if width is not None and not (
        isinstance(widths, list) and len(widths) == levels and all(is_int(w, 1, 1 << 20) for w in widths)
    ):
        raise ConfigError(f"[config] got beam_width {quote(width)} in {file}, want an integer or one per level.")
    if results is not None and not is_int(results, 1, 1 << 20):
        raise ConfigError(f"[config] got num_results {quote(results)} in {file}, want a positive integer.")
    return GenerationDefaults(beam_width=None if widths is None else tuple(widths), num_results=results)
