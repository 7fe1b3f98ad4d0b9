"""How well the simulated node agrees with the live server."""
