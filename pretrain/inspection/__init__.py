"""Pages and text views of prepared data and of runs: `loopmdm inspect` and `report`."""
