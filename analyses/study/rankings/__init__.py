"""Rankings of attention heads compared: which keeps retrieval with the fewest heads, and at what cost elsewhere."""
