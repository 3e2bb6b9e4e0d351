"""Rewards: answer checking, and a process pool that limits the time and memory of each check."""
