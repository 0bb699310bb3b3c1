"""`loopmdm evaluate`, `sample` and `doctor`, and the loading of a finished run."""
