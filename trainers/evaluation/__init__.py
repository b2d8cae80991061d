"""From scores to measures to a report: of trained runs, or of any table of predictions."""
