"""Figures: one style, pictures of samples, and figures of results."""
