"""A PACED accelerator: a real Triton server whose models wait as long as a modelled GPU would take, scoring nothing."""
