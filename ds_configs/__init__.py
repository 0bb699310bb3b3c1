"""DeepSpeed-owned keys, one file per ZeRO stage. Batch, clipping, precision and optimiser follow from the recipe."""
