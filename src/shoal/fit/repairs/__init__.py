"""The repairs, one file each; their table is :data:`shoal.fit.table.REPAIRS`."""
