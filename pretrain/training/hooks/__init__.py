"""What happens beside training: figures, evaluation, checkpoints. Each is a `pretrain.training.loop.Hook`."""
