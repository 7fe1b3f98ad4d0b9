"""What offloading costs and brings on this machine: to a real Triton server on the same cores, and to a PACED one."""
