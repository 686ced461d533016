"""Who trains, one decorated function each; importing this registers them all."""

from bench.training.variants import alone, ddp, one_process, other_pipelines, own, own_pipeline
from bench.training.variants.base import VARIANTS, Training, Variant, variant, variants_of

__all__ = ["VARIANTS", "Training", "Variant", "variant", "variants_of"]
