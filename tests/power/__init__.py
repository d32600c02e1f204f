"""Power cuts under a durable store: what was accepted is there when the machine comes back."""
