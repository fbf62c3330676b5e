"""The package's exceptions.

Messages follow one form: ``[op] got X, want Y. Do Z.`` Argument errors are plain `ValueError`; the classes
below tell apart what a caller may want to handle differently.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "EngineClosedError",
    "EngineError",
    "OutOfMemoryPlanError",
]


class ConfigError(ValueError):
    """`config.json` does not describe a model this engine can run. Lists every problem found."""


class CheckpointError(ValueError):
    """A checkpoint directory is damaged, incomplete or hostile. Lists every problem found."""


class EngineError(RuntimeError):
    """The engine is in a state in which it cannot do what was asked."""


class EngineClosedError(EngineError):
    """The engine was closed, or died of a fatal device error; make a new one."""


class DeviceError(EngineClosedError):
    """The device failed. The engine is dead and refuses all further work; the message says what failed."""


class OutOfMemoryPlanError(EngineError):
    """A plan needs more memory than there is. The message carries the numbers; nothing was allocated."""
