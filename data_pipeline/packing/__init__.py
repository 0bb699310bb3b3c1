"""From documents to rows: a plan beside the tokens, which can be made again for another row length."""
