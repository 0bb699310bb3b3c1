"""A run of `loopmdm prepare`: tasks, the processes that do them, what they leave, and the join."""
