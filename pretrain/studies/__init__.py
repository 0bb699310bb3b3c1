"""Studies: several trainings that test one claim, what is measured on them, and the page of the result."""
