"""Tasks: what a model is asked, and how the answers are scored."""
