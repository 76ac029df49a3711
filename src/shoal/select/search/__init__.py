"""Searches for the set of units whose loss hurts least, on any set function; nothing here knows of models or of torch."""
