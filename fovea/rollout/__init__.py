"""How episodes come about: sampling, the coroutine engine, the lock-step driver of vectorised environments, episode programs."""
