"""Text to tokens to packed rows: an offline pipeline that knows neither a model nor a GPU."""
