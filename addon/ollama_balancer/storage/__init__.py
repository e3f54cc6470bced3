"""What outlives the process: the token, agents, history."""
