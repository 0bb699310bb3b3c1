"""AdamW, Muon, the learning-rate schedule and the moving average of the weights."""
