"""`loopmdm inspect`: show what a prepared folder contains, on a terminal or as an HTML page. Imports no torch."""
