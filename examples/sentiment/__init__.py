"""Is a tweet glad or sour? A mean of word vectors against a GRU."""
