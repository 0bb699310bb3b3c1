"""The commands that use a finished run: `loopmdm evaluate`, `sample`, `probe`, `export`, `checkpoints` and others."""
