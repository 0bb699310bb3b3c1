"""Documents to ids: tokenizers behind one protocol, SentencePiece word by word, training one."""
