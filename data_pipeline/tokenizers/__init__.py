"""From text to token ids: tokenizers behind one protocol, their training, and SentencePiece word by word."""
