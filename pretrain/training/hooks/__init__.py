"""What happens beside training: metrics, validation, checkpoints. Each is a `Hook` (`base.py`)."""
