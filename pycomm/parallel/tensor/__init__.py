"""Tensor parallelism: the neurons, heads and symbols of each layer divided over ranks."""

from pycomm.parallel.tensor.attention import HeadsAttention
from pycomm.parallel.tensor.cross_entropy import vocabulary_cross_entropy
from pycomm.parallel.tensor.divided import counted, divisions
from pycomm.parallel.tensor.division import Division, full_tensor, take_shard
from pycomm.parallel.tensor.embedding import VocabularyEmbedding
from pycomm.parallel.tensor.linear import ColumnLinear, RowLinear
from pycomm.parallel.tensor.plan import tensor_parallel
from pycomm.parallel.tensor.ready import PLANS, Plan, plan_for, ready_plan
from pycomm.parallel.tensor.styles import STYLES, Place, part, qkv, style

__all__ = [
    "tensor_parallel",
    "Plan",
    "PLANS",
    "plan_for",
    "ready_plan",
    "STYLES",
    "Place",
    "style",
    "qkv",
    "part",
    "ColumnLinear",
    "RowLinear",
    "VocabularyEmbedding",
    "HeadsAttention",
    "vocabulary_cross_entropy",
    "Division",
    "divisions",
    "take_shard",
    "full_tensor",
    "counted",
]
