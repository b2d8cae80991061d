"""NIH chest X-rays to label-encoded TFRecord shards with augmented copies of rare classes."""
