"""What a run is worth: NELBO on frozen noise, likelihoods, tasks, samples, with standard errors."""
