"""The words of Shoal as plain data: everybody may read them, and they import nothing of torch."""
