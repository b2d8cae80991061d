"""Apache Beam wiring: decode and build. What the workers do is in cxr_records."""
