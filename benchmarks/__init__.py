"""Short scripts behind the README's figures: each prints one table and writes one JSON."""
