"""The x2gofleet worker: polls X2Go servers over SSH and writes what they list to Redis."""
