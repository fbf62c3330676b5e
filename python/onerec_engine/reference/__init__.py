"""OneRec-V2 in plain PyTorch, written from the equations: oracle, trainer's model and speed baseline.

Only this package imports torch.
"""

from __future__ import annotations

from onerec_engine.reference.checkpoint import load_model, random_state_dict, save_checkpoint
from onerec_engine.reference.emulation import Emulated, Operand, OperandTap, Precision, Quantized
from onerec_engine.reference.generate import BeamResult, beam_search
from onerec_engine.reference.inputs import ContextInput, PathwayInput
from onerec_engine.reference.model import OneRecV2
from onerec_engine.reference.numerics import ContextKV, Native
from onerec_engine.reference.score import score_tuples
from onerec_engine.reference.trie import Excluded, Trie

__all__ = [
    "BeamResult",
    "ContextInput",
    "ContextKV",
    "Emulated",
    "Excluded",
    "Native",
    "OneRecV2",
    "Operand",
    "OperandTap",
    "PathwayInput",
    "Precision",
    "Quantized",
    "Trie",
    "beam_search",
    "load_model",
    "random_state_dict",
    "save_checkpoint",
    "score_tuples",
]
