"""Which words are a name, and of what? A tag for every token, from an LSTM that reads both ways."""
