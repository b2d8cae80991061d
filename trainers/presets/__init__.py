"""Settings that are known to fit together: one module each, which begins with how to run it."""
