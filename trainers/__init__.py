"""Keras trainers; they know only the dataset directory."""
