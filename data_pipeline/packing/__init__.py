"""Documents to rows: a plan beside the tokens, made anew for another row length."""
