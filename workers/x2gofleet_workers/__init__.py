"""The x2gofleet worker."""
