"""The probe: what runs on a polled server, how a worker talks to it, and what its answers are worth."""
