"""The study: cells in, rows and pages out."""
