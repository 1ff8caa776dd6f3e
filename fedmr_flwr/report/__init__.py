"""What people see: the progress display, pictures, tables, comparisons."""
