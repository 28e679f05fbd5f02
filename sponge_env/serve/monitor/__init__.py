"""What a server tells of itself: metrics, the live page and its past."""
