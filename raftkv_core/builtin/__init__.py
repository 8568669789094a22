"""What the core brings itself: a storage in memory, and consensus of one node."""
