"""From a prepared folder to training samples: rows by memory map, their order, and blends of several corpora."""
