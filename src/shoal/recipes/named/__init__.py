"""The recipes that have a name, one file each: what it sets, its paper, and what differs from the paper."""
