"""Drop-ins: what other X2Go programs call, answered from the fleet; each imports its host package only when used."""
