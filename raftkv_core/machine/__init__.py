"""The replicated state machine: commands in, outcomes out. Pure: no clock, no network, no configuration."""
