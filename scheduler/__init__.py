"""The decisions of DeepRecSys: pure functions and state machines without I/O, clock or threads."""
