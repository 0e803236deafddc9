"""Networks: made, trained, loaded and run fast."""
