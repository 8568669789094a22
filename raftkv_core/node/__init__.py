"""What happens around the state machine on one node: its process, its children, its data directory."""
