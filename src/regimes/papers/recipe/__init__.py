"""Data x network x engine x probes: the parts that runs of papers are put together from.

``recipe.recipe`` holds what every run of training is made of, ``data``, ``network`` and ``engine`` the parts that more
than one paper has. Nothing is imported here: the catalogue goes through these folders before anything heavy is loaded.
"""

__all__ = []
