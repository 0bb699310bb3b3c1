"""DeepSpeed's own keys, one file per ZeRO stage. Batch size, clipping, precision and optimizer follow from the recipe."""
