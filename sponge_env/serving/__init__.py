"""The serving core: queue, batches, ledger and the loop that drives them."""
