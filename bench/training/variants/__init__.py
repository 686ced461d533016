"""Who trains, one decorated function each; importing this registers them all."""

from bench.training.variants import alone, ddp, own
from bench.training.variants.base import VARIANTS, Training, Variant, variant

__all__ = ["VARIANTS", "Training", "Variant", "variant"]
