"""Language models in RL: losses, rewards, tasks, a small trainer, and evaluation.

Nothing is imported here: the processes that judge responses, `rewards.Reward`, need neither torch nor
transformers, and are there in a tenth of the time.
"""
