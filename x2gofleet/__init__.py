"""Read what an X2Go fleet is doing."""
