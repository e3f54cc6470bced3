"""The fleet core before hosts in simulated time: what each mode does, or would have done, with the same requests."""
