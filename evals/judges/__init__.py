"""Models that are asked how well an image fits a text: the measured one itself, another one, CLIP."""
