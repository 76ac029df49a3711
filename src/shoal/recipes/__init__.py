"""Recipes: the choices that make one method; a paper is one of them."""
