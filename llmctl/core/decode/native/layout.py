"""layout: the structures that the native step is given, field by field as in step.cpp and products.h."""

import ctypes

import torch

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INT8, INT4, BRIEF = 3, 4, 5
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
PLACES = {"pre": 0, "post": 1, "output": 2, "sandwich": 3}
NORMS = {"rms": 1, "layer": 2}
PANEL = 32  # rows of a matrix that lie interleaved, and positions of a block of the cache

_number, _real, _pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """One packed matrix, or a table of vectors."""

    _fields_ = (
        *((name, _number) for name in ("kind", "rows", "columns", "group")),
        ("codes", _pointer),
        ("scale", _pointer),
        ("scale_kind", _number),
        ("zero", _pointer),
        ("bias", _pointer),
        ("flat", _number),
        *((name, _pointer) for name in ("table", "rare", "begin")),
    )


class Norm(ctypes.Structure):
    """One norm; kind 0: none."""

    _fields_ = (("kind", _number), ("eps", _real), ("weight", _pointer), ("bias", _pointer))


class Layer(ctypes.Structure):
    """One layer."""

    _fields_ = (
        *(
            (name, Norm)
            for name in ("attention_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm", "q_norm", "k_norm")
        ),
        *((name, Matrix) for name in ("q", "k", "v", "out", "gate", "up", "down")),
        ("window", _number),
        ("rotation", _number),
        ("pool", _number),
        ("slot", _number),
    )


class Model(ctypes.Structure):
    """One decoder."""

    _fields_ = (
        *((name, _number) for name in ("layers", "width", "heads", "kv_heads", "head_dim", "ff", "turned")),
        *((name, _number) for name in ("place", "parallel", "activation", "gated", "norm_whole")),
        *((name, _real) for name in ("scale", "softcap", "embed_scale", "logit_scale", "logit_softcap")),
        ("slopes", _pointer),
        ("layer", ctypes.POINTER(Layer)),
        ("embed", Matrix),
        ("head", Matrix),
        ("positions", _pointer),
        ("embed_norm", Norm),
        ("norm", Norm),
        ("kv_kind", _number),
        ("pool_layers", _number * 2),
    )


class Pass(ctypes.Structure):
    """What one pass reads and writes."""

    _fields_ = (
        ("tokens", _number),
        *((name, _pointer) for name in ("ids", "rows", "places")),
        ("tables", _pointer * 2),
        ("table_strides", _number * 2),
        ("blocks", _pointer * 2),
        ("cosines", _pointer * 2),
        ("sines", _pointer * 2),
        ("asked", _number),
        ("which", _pointer),
        ("logits", _pointer),
        *((name, _number) for name in ("parts", "threads", "layers")),
        ("order", _pointer),
    )
