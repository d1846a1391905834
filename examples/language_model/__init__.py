"""The next word: counts of n-grams with back-off against recurrent networks, on the same text."""
