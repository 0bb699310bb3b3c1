"""A prepared folder to training: rows by memory map, their order, and mixtures of several corpora."""
