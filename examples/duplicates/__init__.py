"""Do two questions ask the same? One LSTM encoder for both, trained with the triplet loss."""
