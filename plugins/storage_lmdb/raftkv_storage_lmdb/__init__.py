"""LMDB storage for RaftKV. `plugin` is what the core imports first; `engine` is the storage."""
