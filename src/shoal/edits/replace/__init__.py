"""Modules that take the place of a removed span. The table is free of torch; what makes students is imported on first use."""
