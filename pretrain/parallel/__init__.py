"""One model on many ranks: process groups, the ordered composition, DeepSpeed, the pipeline, the watchdog."""
