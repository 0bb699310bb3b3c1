"""`loopmdm inspect`: look into a prepared folder, on a terminal or as a page. Imports no torch."""
