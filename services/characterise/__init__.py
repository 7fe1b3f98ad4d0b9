"""What the models are made of and what they take on this machine: seconds, operators, work, roofline."""
