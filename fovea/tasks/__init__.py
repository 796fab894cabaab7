"""Where tasks come from: procedural worlds, folders and tables of your own."""
