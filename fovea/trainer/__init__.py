"""In which order, where? Collectors (`on_policy`, `offline`) bring groups; one session turns them into optimizer steps."""
