"""How far generated images are from real ones: features, their statistics and the Fréchet distance.

With Inception-2015 features the distance is called FID; with any others it is a Fréchet distance (FD),
and the features are named beside it.
"""
