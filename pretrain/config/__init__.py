"""Settings of a run, their rules, and the numbers that follow from them. Imports no torch."""
