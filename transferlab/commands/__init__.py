"""The commands, a module each: its options (`add_options`) and what it does (`run`)."""
