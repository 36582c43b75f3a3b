"""Attention over the window around each pixel and a pooled image, in one softmax.

outputs     from the gates back to the products of weights with values
scores      from the softmax back to the products of queries with keys
peel        what a query or key is made of
windows     which pixels the windows are, told by their elements (neighbours, strides)
reader      puts these together, and checks that they are one attention
"""

from moh_deploy.frontend.recognize.aggregated.form import Aggregated, WindowSource
from moh_deploy.frontend.recognize.aggregated.reader import read_aggregated

__all__ = ["Aggregated", "WindowSource", "read_aggregated"]
