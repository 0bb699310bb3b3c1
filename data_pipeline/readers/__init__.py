"""From `--input` to text values: which files and datasets there are, and readers of every kind."""
