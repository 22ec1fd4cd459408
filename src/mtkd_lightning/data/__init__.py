"""Pictures: read, resize, store, pair, cut into batches."""
