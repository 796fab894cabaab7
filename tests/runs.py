"""Settings of the shortest runs that still pass through every part."""

SHORT = dict(data="worlds:count", tasks_per_step=2, group_size=3, eval_tasks=0, sampling__max_new_tokens=6, threads=1, quiet=True)
ODD_LENGTH = dict(reward=lambda text, task: float(len(text) % 2), steps=2, warmup_steps=0)
"""A reward that an untrained model earns half of the time: two steps with a gradient."""
