"""`loopmdm prepare`: the corpus cut into tasks, done in any order and place, and joined."""
