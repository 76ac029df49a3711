"""What people look at: tables, charts, the model card and the report."""
