"""Simulated fleets: kinds and fleets read from files, sweeps run on processes or on Ray. No decision is made here."""
