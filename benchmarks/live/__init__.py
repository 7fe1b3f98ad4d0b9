"""Measurements of a live server on this machine: throughput within the target, change, and two models together."""
